"""The model card of a model folder, made from its config.json: nothing in it is invented."""

from collections.abc import Mapping
from typing import Any

from vlprompt.data.cards import list_cards, load_card
from vlprompt.experiments.learned.folder_schema import LIBRARY, ModelConfig
from vlprompt.experiments.learned.local_paths import list_datasets
from vlprompt.experiments.model_cards.citations import Citation, read_citation
from vlprompt.experiments.model_cards.licenses import require_license
from vlprompt.experiments.model_cards.run_command import build_run_command
from vlprompt.results.tables.formats import name_with_unit

MAX_LISTED_CLASSES = 50
PIPELINE_TAGS = {  # what a prompt for texts answers -> the hub's name of the task
    None: "image-classification",
    "class": "text-classification",
    "tags": "token-classification",
    "response": "text-generation",
    "messages": "text-generation",
}
HUB_BACKBONES = (
    "hf_clip:",
    "hf:",
    "hf-bf16:",
    "hf-int8:",
    "hf-nf4:",
    "open_clip:hf-hub:",
    "hf_clip-bf16:",
    "open_clip-bf16:hf-hub:",
)  # before OWNER/NAME
IMAGE_USE = """import vlprompt

prompt = vlprompt.load_prompt({name!r}{backbone})
print(*prompt.predict(["image.png"]), prompt.predict_proba(["image.png"]).max())"""


def build_model_card(config: ModelConfig, name: str, license: str | None = None) -> str:
    """Return the README.md of a model folder.

    Args:
        config: its config.json.
        name: by which the card loads it, the folder's or OWNER/NAME.
        license: the identifier of the prompt's licence; None leaves the field out.

    Raises:
        ValueError: for a licence that is no identifier.
    """
    import yaml

    metadata = yaml.safe_dump(_build_metadata(config, name, license), sort_keys=False, allow_unicode=True)
    citation = read_citation(config.method.name)
    sections = [
        f"---\n{metadata}---",
        f"# {_get_title(config)}",
        _describe_summary(config, citation),
        f"## Use\n\n{_describe_use(config, name)}",
        f"## Results\n\n{_describe_results(config)}",
        f"## Data\n\n{_describe_data(config)}",
        f"## Protocol\n\n{_describe_protocol(config)}",
        f"## Method\n\n{_describe_method(config, citation)}",
        f"## Backbone\n\n{_describe_backbone(config)}",
        f"## Classes\n\n{_describe_classes(config)}",
        f"## Not tested\n\n{_list_untested(config)}",
        f"## How it was made\n\n{_describe_origin(config)}",
        f"## Licences\n\n{_describe_licenses(config, license)}",
    ]
    return "\n\n".join(sections) + "\n"


def _build_metadata(config: ModelConfig, name: str, license: str | None) -> dict[str, Any]:
    """Return the fields that the hub reads, those that are known."""
    datasets = [hub for name in list_datasets(config.task) for hub in _get_hub_names(name, "huggingface:")]
    metrics = list(config.result.summary) if config.result is not None else []
    index = [] if config.result is None else [{"name": name.rpartition("/")[2], "results": [_index_result(config)]}]
    fields = {
        "library_name": LIBRARY,
        "license": None if license is None else require_license(license),
        "pipeline_tag": _get_pipeline_tag(config),
        "tags": [LIBRARY, "prompt-learning", config.method.name, str(config.task.get("name"))],
        "base_model": _get_hub_names(config.backbone.spec, *HUB_BACKBONES) if not config.backbone.is_local else None,
        "datasets": datasets,
        "metrics": metrics,
        "model-index": index,
    }
    return {key: value for key, value in fields.items() if value}


def _get_pipeline_tag(config: ModelConfig) -> str | None:
    answer = config.text_protocol.get("answer")
    return PIPELINE_TAGS.get(answer if isinstance(answer, str) else None)


def _get_hub_names(name: object, *prefixes: str) -> list[str]:
    """Return [OWNER/NAME] of a name with one of the prefixes, [] for others: the hub links what stands there."""
    for prefix in prefixes:
        if isinstance(name, str) and name.startswith(prefix):
            return [name.removeprefix(prefix)]
    return []


def _index_result(config: ModelConfig) -> dict[str, Any]:
    assert config.result is not None
    task, data = str(config.task.get("name")), _get_data_name(config)
    metrics = [
        {"type": key, "name": name_with_unit(key, "percent"), "value": value}
        for key, value in config.result.summary.items()
    ]
    return {
        "task": {"type": _get_pipeline_tag(config) or task, "name": task},
        "dataset": {
            "type": data,
            "name": ", ".join(map(_get_data_title, list_datasets(config.task))) or data,
            "split": "test",
        },
        "metrics": metrics,
    }


def _get_title(config: ModelConfig) -> str:
    citation = read_citation(config.method.name)
    method = config.method.name.rpartition(":")[2] if citation is None else citation.name
    return f"{method} on {_get_data_name(config)}"


def _get_data_name(config: ModelConfig) -> str:
    names = [name.removeprefix("./").partition("#")[0] for name in list_datasets(config.task)]
    return ", ".join(names) or str(config.task.get("name"))


def _get_data_title(dataset: str) -> str:
    return load_card(dataset).title if dataset in list_cards() else dataset.removeprefix("./").partition("#")[0]


def _describe_summary(config: ModelConfig, citation: Citation | None) -> str:
    method = f"`{config.method.name}`" if citation is None else citation.name
    idea = "" if citation is None else f" {citation.idea}"
    return (
        f"A prompt for a frozen model, learned with {LIBRARY} {config.vlprompt_version or ''} by {method}.{idea} The "
        f"folder has what was learned ({config.tensors.bytes:,} bytes), not the frozen model."
    ).replace("  ", " ")


def _describe_use(config: ModelConfig, name: str) -> str:
    backbone = f" --backbone {config.backbone.spec}" if config.backbone.is_local else ""
    note = "The backbone was a file: say where yours is by `--backbone`.\n\n" if config.backbone.is_local else ""
    if config.text_protocol:
        command = f'vlprompt predict {name} --text "your text"{backbone}'
        if config.text_protocol.get("answer") == "tags":
            command = f"vlprompt eval {name} DATASET{backbone}"
        return f"{note}```bash\n{command}\n```"
    argument = f", backbone={config.backbone.spec!r}" if config.backbone.is_local else ""
    code = IMAGE_USE.format(name=name, backbone=argument)
    return f"{note}```bash\nvlprompt predict {name} image.png{backbone}\n```\n\n```python\n{code}\n```"


def _describe_results(config: ModelConfig) -> str:
    result = config.result
    if result is None:
        return "No result is known: the prompt was saved without one."
    seeds = result.seeds
    heads = ["metric", "this prompt"] + ([] if seeds is None else [f"mean±std of {len(seeds.seeds)} seeds"])
    rows = [
        [name_with_unit(key), f"{value:.2f}"]
        + ([] if seeds is None else [f"{seeds.mean[key]:.2f}±{seeds.std[key]:.2f}" if key in seeds.mean else ""])
        for key, value in result.summary.items()
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])
    spread = (
        "One run: the spread over seeds is not known."
        if seeds is None
        else f"Seeds {', '.join(map(str, seeds.seeds))}; the standard deviation is divided by n."
    )
    if config.decision.temperature != 1 or config.decision.threshold is not None:
        spread += " All are of the run, before the temperature and threshold below were chosen."
    return f"In percent, on the test split.\n\n{table}\n\n{spread}"


def _describe_data(config: ModelConfig) -> str:
    protocol, lines = {} if config.result is None else config.result.protocol, list[str]()
    for dataset in list_datasets(config.task):
        lines.append(f"name: {_get_data_title(dataset)}")
        if dataset in list_cards():
            card = load_card(dataset)
            lines += [f"source: {card.source}", f"card: `{dataset}`"] + ([f"note: {card.note}"] if card.note else [])
        elif dataset.startswith("./"):
            lines.append("where: files of the one who trained it, not in this folder")
    for key in ("dataset_hash", "train", "test"):
        if key in protocol:
            lines.append(f"hash of {'the splits' if key == 'dataset_hash' else f'the {key} split'}: `{protocol[key]}`")
    contents = protocol.get("contents")
    for use, content in contents.items() if isinstance(contents, Mapping) else ():
        if isinstance(content, Mapping):
            lines.append(f"{use}: {content.get('items')} items, content hash `{content.get('hash')}`")
    return _format_list(lines)


def _describe_protocol(config: ModelConfig) -> str:
    protocol = {} if config.result is None else config.result.protocol
    settings = {
        key: value
        for key, value in config.task.items()
        if key not in ("name", "dataset", "targets") and value is not None
    }
    lines = [f"task: `{config.task.get('name')}`", *(f"{key}: {value}" for key, value in settings.items())]
    lines.append(f"seed of the training: {config.seed}")
    lines += [f"{key}: {protocol[key]}" for key in ("selection", "split", "template") if key in protocol]
    decision = config.decision
    if decision.temperature != 1:
        lines.append(f"temperature of the softmax: {decision.temperature:g}")
    if decision.labels is not None:
        lines.append(f"gives the labels of a probability above {decision.build().labels}")
    if decision.threshold is not None:
        lines.append(f"answers `unknown` where the score {decision.score} is below {decision.threshold:g}")
    lines += [f"{key}: {value}" for key, value in decision.facts.items()]
    return _format_list(lines)


def _describe_method(config: ModelConfig, citation: Citation | None) -> str:
    settings = {key: value for key, value in config.method.model_dump().items() if key != "name"}
    if citation is None:
        lines = [f"class: `{config.method.name}`, of a package that must be installed"]
    else:
        lines = [f"name: {citation.name} (`{config.method.name}`)"]
        lines += [f"paper: {citation.title}"] if citation.title else []
        lines += [f"reference: {citation.citation}"]
        lines += [f"arXiv: [{citation.arxiv}](https://arxiv.org/abs/{citation.arxiv})"] if citation.arxiv else []
    lines += [f"{key}: {_format_code(str(value))}" for key, value in settings.items() if value is not None]
    return _format_list(lines)


def _describe_backbone(config: ModelConfig) -> str:
    local = " (a file of the one who trained it)" if config.backbone.is_local else ""
    lines = [f"spec: `{config.backbone.spec}`{local}", f"key: `{config.backbone.key}`"]
    lines += [] if config.preprocess is None else [f"preprocessing: `{config.preprocess}`"]
    lines.append("Weights or preprocessing of another key are refused.")
    return _format_list(lines)


def _describe_classes(config: ModelConfig) -> str:
    names = config.class_names
    more = f" ... and {len(names) - MAX_LISTED_CLASSES} more" if len(names) > MAX_LISTED_CLASSES else ""
    return f"{len(names)}: {', '.join(map(_format_code, names[:MAX_LISTED_CLASSES]))}{more}."


def _list_untested(config: ModelConfig) -> str:
    """List what no number of the card says."""
    summary = {} if config.result is None else config.result.summary
    lines = [
        "other backbones: the prompt belongs to one",
        "data other than the test split named here: images of another source, camera or time",
        "robustness to corrupted, shifted or adversarial inputs",
        "fairness between groups of people, and any use that needs it",
    ]
    if config.result is None or config.result.seeds is None:
        lines.append("other seeds: how much the numbers vary is not known")
    if "calibration_error" not in summary and "ece" not in summary:
        lines.append("calibration: how far the probabilities can be trusted")
    if config.decision.threshold is None and config.decision.labels is None:
        lines.append("inputs of no class: every input is answered with one of the classes")
    return _format_list(lines)


def _describe_origin(config: ModelConfig) -> str:
    environment = {} if config.result is None else config.result.environment
    versions = [f"{key} {environment[key]}" for key in ("python", "torch", "device") if environment.get(key)]
    own = [dataset for dataset in list_datasets(config.task) if dataset.startswith("./")]
    notes = [f"With vlprompt {config.vlprompt_version}; hash of the configuration `{config.config_hash}`."]
    notes += [f"On {', '.join(versions)}."] if versions else []
    notes += [f"`{dataset}` stands for the path of the data." for dataset in own]
    notes += [f"`{config.backbone.spec}` stands for the path of the weights."] if config.backbone.is_local else []
    return f"```bash\n{build_run_command(config.run_config)}\n```\n\n{' '.join(notes)}"


def _describe_licenses(config: ModelConfig, license: str | None) -> str:
    lines = [
        f"this prompt: {license or 'none was named by the one who saved it'}",
        f"the backbone: see that of `{config.backbone.spec}`",
    ]
    for dataset in list_datasets(config.task):
        known = load_card(dataset).licence if dataset in list_cards() else "see its own"
        lines.append(f"the data {dataset.removeprefix('./')}: {known}")
    return _format_list(lines)


def _format_list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _format_code(text: str) -> str:
    """Return a text as code that ends where it should."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"
