"""Schemas of the cards of images, one pydantic model for each source of data, and of benchmarks."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from vlprompt.core.templates import PromptTemplate
from vlprompt.data.builtin.image_loaders import IMAGE_LOADERS
from vlprompt.data.dataset import normalize_name
from vlprompt.data.images.decoding import AUGMENTATIONS
from vlprompt.data.validation import Schema
from vlprompt.runtime.errors import suggest_nearest

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
DOMAINS_LAYOUT = "domains"  # the layout that reads the domains of a card


def require_inside(path: str) -> str:
    """Return a path of a card; ValueError for one that leads out of the folder that it begins in."""
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or path.startswith("~") or ":" in path[:2]:
        raise ValueError(f"expected a path inside the folder of the data, got {path!r}. Write it without .. and root.")
    return path


InnerPath = Annotated[str, AfterValidator(require_inside)]
Classes = int | str | list[object] | dict[object, object]  # a resolved card has no str, which names another card


def list_layouts() -> list[str]:
    """Return the names of the folder layouts, one file each in data/layouts/."""
    return sorted(path.stem for path in (Path(__file__).parent / "layouts").glob("[!_]*.py"))


def require_choice(value: str, choices: Sequence[str]) -> str:
    """Return the value; ValueError with the nearest choice where it is none of them."""
    if value not in choices:
        raise ValueError(f"expected a known name, got {value!r}; {suggest_nearest(value, choices)}")
    return value


class CardSchema(Schema):
    """What every card has. `dataset` is the name or path that the card was read by."""

    title: str = Field(description="the name of the dataset and what it shows")
    source: str = Field(description="who made the dataset, and where they described it")
    licence: str = Field(description="the licence of the data")
    classes: Classes = Field(
        description="a number of classes, the name of a card, {id: name}, or a list of names and {id: name}"
    )
    sizes: dict[str, int] = Field({}, description="{split or domain: number of items}")
    note: str = Field("", description="text for the results")
    _dataset: str = PrivateAttr("")
    _path: Path = PrivateAttr(Path())

    @property
    def dataset(self) -> str:
        """The name or path that opens the card again."""
        return self._dataset

    @property
    def path(self) -> Path:
        """The YAML file of the card."""
        return self._path

    @property
    def name(self) -> str:
        """The name of the dataset: that of the card's file."""
        return self._path.stem

    def locate(self, dataset: str, path: Path) -> None:
        """Remember where the card was read."""
        self._dataset, self._path = dataset, path

    @property
    def is_counted(self) -> bool:
        """Whether the card only counts its classes, which then the data name."""
        return isinstance(self.classes, int)

    def listed_classes(self) -> dict[str, str]:
        """Return {id: name} in label order, as the card itself lists them.

        Names alone are their own ids; a card that counts its classes calls them by number.
        """
        if isinstance(self.classes, int):
            return {str(i): f"class {i}" for i in range(self.classes)}
        entries = [self.classes] if isinstance(self.classes, dict | str) else self.classes
        pairs = [pair for one in entries for pair in (one.items() if isinstance(one, dict) else [(one, one)])]
        return {str(key): str(name) for key, name in pairs}

    @field_validator("classes")
    @classmethod
    def _check_unique_ids(cls, classes: Classes) -> Classes:
        keys: list[object] = []
        for one in classes if isinstance(classes, list) else []:
            keys += one if isinstance(one, dict) else [one]
        if repeated := [key for key, n in Counter(map(str, keys)).items() if n > 1]:
            raise ValueError(
                f"expected classes with different ids, got {repeated[0]!r} twice. Distinguish them by {{id: name}}."
            )
        return classes


class _ImageCard(CardSchema):
    """What every card of images has."""

    template: str = Field(description="a prompt template with {name} where the class name stands")
    augment: str = Field("crop-flip", description=f"an augmentation ({', '.join(AUGMENTATIONS)})")
    names: Literal["imagenet"] | None = Field(None, description="imagenet, where the classes are WordNet ids")
    stages: object = Field(None, description="a number of stages, or a list of class ids for each stage")
    domain: str | None = Field(None, description="the word for all images of a dataset without domains")
    transductive: bool = Field(False, description="true or false: adapt to the images that are tested on")
    pairs: list[list[str]] = Field([], description="a list of [source, target]")
    incomplete_splits: bool = Field(False, description="true or false: a class may lack images in a split")

    @property
    def domain_words(self) -> list[str]:
        """The domains that the card names."""
        return []

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        PromptTemplate.parse(template).require_fields(repr(template), ("name",))
        return template

    @field_validator("augment")
    @classmethod
    def _check_augment(cls, augment: str) -> str:
        return require_choice(augment, AUGMENTATIONS)

    @field_validator("domain")
    @classmethod
    def _check_domain(cls, domain: str | None) -> str | None:
        if domain is not None and not domain.strip():
            raise ValueError(
                f"expected the word for all images of a dataset without domains, got {domain!r}. Write a word, or "
                "leave the key out."
            )
        return domain

    @model_validator(mode="after")
    def _check_pairs(self) -> "_ImageCard":
        for pair in self.pairs:
            if len(pair) != 2 or not set(pair) <= set(self.domain_words):
                raise ValueError(
                    "pairs: expected a list of [source, target] of the domains "
                    f"{', '.join(self.domain_words) or '(none)'}, got {pair!r}. Correct the pair."
                )
        return self


class LoaderCard(_ImageCard):
    """Images that come with the package."""

    kind: ClassVar[Literal["loader"]] = "loader"
    loader: str = Field(description=f"one of {', '.join(IMAGE_LOADERS)}")

    @field_validator("loader")
    @classmethod
    def _check_loader(cls, loader: str) -> str:
        return require_choice(loader, list(IMAGE_LOADERS))


class HubCard(_ImageCard):
    """Images that torchvision downloads and reads."""

    kind: ClassVar[Literal["hub"]] = "hub"
    hub: str = Field(description="torchvision:NAME")
    folder: InnerPath = Field(description="the folder below the data root that torchvision reads")

    @field_validator("hub")
    @classmethod
    def _check_hub(cls, hub: str) -> str:
        if not hub.startswith("torchvision:"):
            raise ValueError(f"expected torchvision:NAME, got {hub!r}. Name a dataset of torchvision.")
        return hub


class MembersCard(_ImageCard):
    """The images of other datasets, each of which is a domain and a stage."""

    kind: ClassVar[Literal["members"]] = "members"
    classes: int = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen, so narrower is safe
        description="the number of classes of all members together"
    )
    members: dict[str, str] = Field(description="{name: a card, torchvision:NAME or a folder}")

    @field_validator("members")
    @classmethod
    def _check_members(cls, members: dict[str, str]) -> dict[str, str]:
        if unusable := [name for name in members if "/" in name]:
            raise ValueError(
                f"expected names without /, which separates a member from its class, got {unusable[0]!r}. Rename it."
            )
        return members


class Download(Schema):
    """One file of a dataset.

    `file` is its name in the dataset's folder (default: the end of `url`), where an earlier archive puts a file without
    `url`. An archive is unpacked into `extract_to` without the first `strip_components` folders of its paths. The
    presence of `produces` means that the step is done.
    """

    produces: InnerPath
    file: InnerPath
    url: str | None = None
    md5: str | None = None
    strip_components: int = 0
    extract_to: InnerPath = "."

    @property
    def is_archive(self) -> bool:
        """Whether the file is unpacked."""
        return self.file.endswith(ARCHIVE_SUFFIXES)

    @model_validator(mode="before")
    @classmethod
    def _complete_file(cls, values: object) -> object:
        if isinstance(values, dict) and "file" not in values and isinstance(values.get("url"), str):
            return {**values, "file": PurePosixPath(values["url"]).name}
        return values


class LayoutCard(_ImageCard):
    """Images in a folder as its authors published them."""

    kind: ClassVar[Literal["layout"]] = "layout"
    layout: str = Field(description="a file of data/layouts/")
    folder: InnerPath = Field(description="the folder of the dataset below the data root")
    images: InnerPath = Field(description="the folder inside it that the paths of images begin in")
    split: InnerPath | None = Field(None, description="the split file of the literature")
    lists: list[InnerPath] = Field([], description="the three list files of train, val and test")
    custom_order: bool = Field(False, description="true or false: the images are not in the literature's order")
    downloads: list[Download] = Field(
        [],
        description="a list of {produces, url or file, and perhaps md5, strip_components, extract_to}",
    )
    manual_download: str | None = Field(None, description="how the files are fetched by hand")
    domains: dict[str, str] | None = Field(None, description="{folder: word}, texts, two of them or more")

    @property
    def domain_words(self) -> list[str]:
        return list((self.domains or {}).values())

    @field_validator("layout")
    @classmethod
    def _check_layout(cls, layout: str) -> str:
        return require_choice(layout, list_layouts())

    @field_validator("lists")
    @classmethod
    def _check_lists(cls, lists: list[str]) -> list[str]:
        if len(lists) not in (0, 3):
            raise ValueError(
                f"expected the three list files of train, val and test, got {lists!r}. Name three files, or leave the "
                "key out."
            )
        return lists

    @field_validator("domains")
    @classmethod
    def _check_domains(cls, domains: dict[str, str] | None) -> dict[str, str] | None:
        if domains is None:
            return None
        if len(domains) < 2 or not all(text.strip() for pair in domains.items() for text in pair):
            raise ValueError(
                f"expected {{folder: word}}, texts, two of them or more, got {domains!r}. Name the folder and the "
                "word of each domain."
            )
        for what, texts in (("folder", domains.keys()), ("word", domains.values())):
            if repeated := [text for text, n in Counter(map(normalize_name, texts)).items() if n > 1]:
                raise ValueError(f"expected different {what}s, got the {what} {repeated[0]!r} twice. Remove one.")
        if nested := [folder for folder in domains if "/" in folder]:
            raise ValueError(f"expected the names of folders, got the path {nested[0]!r}. Move the rest to images.")
        return domains

    @model_validator(mode="after")
    def _check_domain_layout(self) -> "LayoutCard":
        if (self.layout == DOMAINS_LAYOUT) != (self.domains is not None):
            raise ValueError(
                f"domains: expected {{folder: word}} with the layout {DOMAINS_LAYOUT} and no other, got the layout "
                f"{self.layout!r} {'without' if self.domains is None else 'with'} domains. Correct one of them."
            )
        if self.domains is not None and self.domain is not None:
            raise ValueError(
                f"domain: expected no word for all images beside domains, got {self.domain!r}. Remove one of the keys."
            )
        return self


ImageCard = LoaderCard | HubCard | MembersCard | LayoutCard


class Benchmark(Schema):
    """The datasets of a benchmark in configs/groups.yaml, in groups."""

    groups: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(description="{group: [dataset, ...]}")

    def list_datasets(self) -> list[str]:
        """Return the datasets, group after group."""
        return [dataset for group in self.groups.values() for dataset in group]
