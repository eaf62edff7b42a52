"""Tell results apart: by the settings of the rows of one method, and by the protocols of the rows of one table.

Numbers of different protocols in one column always have a letter each, and a footnote that names the difference.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlprompt.results.run_folder import Result

CONTINUAL, DOMAIN, MULTI_LABEL = "continual", "domain", "multi_label"
DOMAIN_PROTOCOL_SETTINGS = ("classes", "val_fraction", "shots")  # settings of domains that define the protocol
CONTINUAL_PROTOCOL_SETTINGS = (
    "order",
    "joint",
    "mask",
    "buffer",
    "buffer_per_class",
    "blur",
    "with_val",
    "shots",
)  # those of a stream
JOINT_KEY, TARGET_TEST_IMAGES = "task.joint", "test images of the target"  # which differ from pair to pair
ORDER_KEY, USES_KEY, NOISE_KEY = "order_dependent", "uses", "noise"
ALWAYS_MARKED = {
    ORDER_KEY: "false",
    USES_KEY: "[]",
    NOISE_KEY: '"none"',
}  # also where all rows have it -> what an unmarked row has
ORDER_NOTE = "order-dependent: each answer depends on the test images before it"
SETTING_LABELS = {
    (JOINT_KEY, True): "joint training",
    (JOINT_KEY, False): "",
    ("task.mask", True): "",
    ("task.mask", False): "no mask",
}
ProtocolFacts = dict[tuple[str, str], Any]  # (name, group of rows in which it is compared) -> value


def make_group_key(config: Mapping[str, Any], ignored: Sequence[str] = ()) -> str:
    """Return a text that runs have in common which differ by their seed alone, or by ignored settings too.

    Args:
        config: of a run, as `RunConfig.to_dict` has it.
        ignored: settings, such as train.lr, or sections.
    """
    remaining = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for setting in ("seed", "task.seed", *ignored):
        section, _, name = setting.partition(".")
        settings = remaining.get(section) if name else remaining
        if isinstance(settings, dict):
            settings.pop(name or section, None)
    return json.dumps(remaining, sort_keys=True, default=str)


class Footnotes:
    """Footnotes with one mark for each text, in the order of their first use.

    Args:
        uses_letters: mark by a, b, c instead of 1, 2, 3.
    """

    def __init__(self, uses_letters: bool):
        self.texts, self.uses_letters = list[str](), uses_letters

    def add(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return self._format_mark(self.texts.index(text))

    def _format_mark(self, i: int) -> str:
        if not self.uses_letters:
            return str(i + 1)
        return ("" if i < 26 else self._format_mark(i // 26 - 1)) + chr(ord("a") + i % 26)

    def format_lines(self) -> list[str]:
        return [f"{self._format_mark(i)}: {text}" for i, text in enumerate(self.texts)]


def count_stages(result: Result, results: Sequence[Result]) -> int | None:
    """Count the lessons of a stream; for joint training those that it replaces. None for no stream, or if unknown."""
    task = result.config["task"]
    if task["name"] != CONTINUAL:
        return None
    if not task.get("joint"):
        return result.protocol.get("stages") or len(result.scores)
    if (stages := task.get("stages")) is not None:
        return stages if isinstance(stages, int) else len(stages)
    counts = Counter(  # of the streams on this dataset whose number of stages is the card's, too
        count_stages(r, results)
        for r in results
        if _get_dataset_key(r) == _get_dataset_key(result)
        and not r.config["task"].get("joint")
        and r.config["task"].get("stages") is None
    )
    return counts.most_common(1)[0][0] if counts else None


def get_domain_pair(result: Result) -> tuple[tuple[str, ...], str]:
    """Return the source domains (none, one or several) and the target of a run of the task domain."""
    return tuple(result.protocol["sources"]), result.protocol["target"]


def _get_dataset_key(result: Result) -> tuple[str, str, str]:
    task = result.config["task"]
    if task["name"] == DOMAIN:
        n_sources = len(get_domain_pair(result)[0])
        sources = {0: ", no source", 1: ""}.get(n_sources, ", several sources")
        return DOMAIN, result.protocol["dataset"], task["setting"] + sources
    return task["name"], str(task.get("dataset")), str(task.get("kind")) if task["name"] == CONTINUAL else ""


def get_table_key(result: Result, results: Sequence[Result]) -> tuple[str, str, str, int | None]:
    """Return the table of a result: task, dataset, kind and number of stages of a stream."""
    return *_get_dataset_key(result), count_stages(result, results)


def make_config_key(result: Result) -> str:
    """Return a key that runs share which differ by their seed only; with the test images and a fixed class order."""
    config = json.loads(json.dumps(result.config))
    config.pop("seed")
    config["task"].pop("seed", None)
    images = result.protocol.get("test"), _get_test_content(result.protocol), result.protocol.get("dataset_hash")
    return json.dumps([config, *images, _get_fixed_class_order(result)], sort_keys=True)


def _get_test_content(protocol: Mapping[str, Any]) -> str | None:
    """Return the content hash of all test items; None where the result does not say it."""
    return protocol.get("contents", {}).get("test", {}).get("hash")


def _get_fixed_class_order(result: Result) -> Any:
    """Return the class order of a stream unless the seed draws it."""
    return None if result.config["task"].get("order") == "seeded" else result.protocol.get("class_order")


def _collect_table_settings(result: Result) -> dict[str, Any]:
    """Return all settings in which two rows may differ; the pair of domains is a column instead."""
    column_keys = ("source", "target") if result.config["task"]["name"] == DOMAIN else ("shots",)
    excluded = {"name", "seed", "dataset", *column_keys}
    sections = {s: result.config[s] for s in ("method", "task", "train")}
    settings = {f"{s}.{k}": v for s, values in sections.items() for k, v in values.items() if k not in excluded}
    if settings.get("task.noise"):
        settings["task.noise"] = result.protocol.get(NOISE_KEY)
    settings |= {f"preprocess.{k}": v for k, v in result.protocol.get("preprocess", {}).items()}
    return settings | {
        "images.test": result.protocol.get("test"),
        "images.content": (_get_test_content(result.protocol) or "")[:8] or None,
        "images.dataset": result.protocol.get("dataset_hash"),
        "images.class_order": _get_fixed_class_order(result),
    }


ColumnSettings = tuple[str, dict[str, Any]]  # the column of a table, and the settings of a row in it


def describe_variants(results: Sequence[Result]) -> dict[str, str]:
    """Describe how each configuration differs from others of its method.

    Returns:
        By the key of the configuration the settings of the method that differ, and others where these are not enough.
    """
    families: dict[tuple[str, ...], dict[str, ColumnSettings]] = {}
    for r in results:
        config = r.config
        family = config["method"]["name"], config["backbone"], str(get_table_key(r, results))
        is_domain = config["task"]["name"] == DOMAIN
        column = str(get_domain_pair(r)) if is_domain else str(config["task"].get("shots"))
        families.setdefault(family, {})[make_config_key(r)] = column, _collect_table_settings(r)
    variants = {}
    for members in families.values():
        keys = _choose_variant_keys(list(members.values()))
        for config_key, (_, settings) in members.items():
            row_keys = keys
            if settings.get(JOINT_KEY) is True and JOINT_KEY not in keys:  # joint training is always named
                row_keys = [*keys, JOINT_KEY]
            parts = [
                _format_setting(k, settings[k], [other.get(k) for _, other in members.values()])
                for k in row_keys
                if settings.get(k) is not None
            ]
            variants[config_key] = ", ".join(part for part in parts if part)
    return variants


def _choose_variant_keys(members: Sequence[ColumnSettings]) -> list[str]:
    """Choose settings that tell all members apart: of the method, of the task too if needed, else of all sections."""
    keys = sorted({k for _, settings in members for k in settings})
    differing = [k for k in keys if _differs_within_column(k, members)]
    chosen: list[str] = []
    for sections in (("method",), ("method", "task"), ("method", "task", "train", "preprocess", "images")):
        chosen = [k for k in differing if k.partition(".")[0] in sections]
        rows = {(column, *(json.dumps(settings.get(k)) for k in chosen)) for column, settings in members}
        if len(rows) == len(members):
            break
    return chosen


def _differs_within_column(key: str, members: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether rows differ in a setting; images are compared within a column, as other columns have other images."""
    is_image = key.startswith("images.")
    values = {(column if is_image else "", json.dumps(settings.get(key))) for column, settings in members}
    return len(values) > len({column for column, _ in values})


def _format_setting(key: str, value: Any, values: Sequence[Any]) -> str:
    if isinstance(value, bool) and (key, value) in SETTING_LABELS:
        return SETTING_LABELS[key, value]
    text = _abbreviate(value) if key == "images.class_order" else _format_cell_value(value, values)
    return f"{key.partition('.')[2]}={text}"


def _format_cell_value(value: Any, values: Sequence[Any]) -> str:
    """Format a value among others: a list of letters as a word, a head or method by its name if that is enough."""
    if isinstance(value, dict) and "name" in value:
        same_name = {json.dumps(v) for v in values if isinstance(v, dict) and v.get("name") == value["name"]}
        return value["name"] if len(same_name) == 1 else str(value)
    return "".join(map(str, value)) if isinstance(value, list) and all(len(str(v)) == 1 for v in value) else str(value)


def collect_protocol_facts(runs: Sequence[Result]) -> ProtocolFacts:
    """Return the facts of a protocol, over all seeds of one configuration.

    Preprocessing and weights are compared among rows of one backbone, the class order among those of one setting and
    seed, test images among those that chose the same classes or domains.
    """
    config, protocol = runs[0].config, runs[0].protocol
    task, backbone = config["task"], config["backbone"]
    chosen = json.dumps(
        [task.get(k) for k in ("base_classes", "known_classes", "unknown", "targets", "source", "target")]
    )
    images = TARGET_TEST_IMAGES if task["name"] == DOMAIN else "test images"
    facts: ProtocolFacts = {(images, chosen): protocol.get("test"), ("weights", backbone): protocol.get("backbone_key")}
    facts["content of the test items", chosen] = _get_test_content(protocol)
    facts |= {(k, ""): protocol.get(k) for k in ("augment", "split", "augmentations")}
    facts |= {(f"preprocess.{k}", backbone): v for k, v in protocol.get("preprocess", {}).items()}
    facts |= {(f"metric {k}", ""): v for k, v in protocol.get("metrics", {}).items()}
    facts |= {(k, ""): protocol.get(k) for k in ALWAYS_MARKED}
    facts |= {(k.replace("_", " "), ""): protocol.get(k) for k in ("unknown_items", "known_classes")}
    facts[NOISE_KEY, ""] = protocol.get(NOISE_KEY, "none")
    if task["name"] == MULTI_LABEL:
        facts |= {(name, ""): task.get(name) for name in ("known", "reading")}
        facts["loss", ""] = config["train"].get("loss") or "bce"
    if task["name"] == CONTINUAL:
        facts |= _collect_continual_facts(runs)
    if task["name"] == DOMAIN:
        facts |= _collect_setting_facts(task, DOMAIN_PROTOCOL_SETTINGS, DOMAIN_PROTOCOL_SETTINGS)
        names = "transductive", "template", "zero_shot_template", "class_matching"
        facts |= {(k, chosen): protocol.get(k) for k in names}
        is_oracle = config["train"].get("model_selection") == "oracle"  # which has its own mark
        if task.get("criterion") != "test-domain":  # likewise
            facts["settings", ""] = protocol.get("settings_chosen")
        if runs[0].cost["trained_parameters"] and not is_oracle:
            facts["selection", ""] = protocol.get("selection")
    return {k: v for k, v in facts.items() if v is not None}


def _collect_continual_facts(runs: Sequence[Result]) -> ProtocolFacts:
    task = runs[0].config["task"]
    names = [k for k in CONTINUAL_PROTOCOL_SETTINGS if k != "blur" or task.get("kind") == "task_free"]
    names += ["disjoint_classes", "blurred_images"] if task.get("kind") == "si_blurry" else []
    setting = json.dumps([task.get("order"), task.get("joint")])
    orders = {("class order", f"{setting} {r.config['seed']}"): r.protocol.get("class_order") for r in runs}
    chosen = {("settings", ""): runs[0].protocol.get("settings_chosen")}
    return _collect_setting_facts(task, names, ("shots",)) | orders | chosen


def _collect_setting_facts(task: Mapping[str, Any], names: Sequence[str], all_names: Sequence[str]) -> ProtocolFacts:
    """Return settings of a task as facts; `all_names` are those whose null means all."""
    return {(f"task.{k}", ""): "all" if task[k] is None and k in all_names else task[k] for k in names if k in task}


def describe_protocol_differences(rows: Sequence[ProtocolFacts]) -> list[str]:
    """Describe for each row of a table how its protocol differs from the majority; empty if it does not.

    A fact that is not known of a row is no difference.
    """
    majority: dict[tuple[str, str], str] = {}
    for key in dict.fromkeys(k for row in rows for k in row):
        counts = Counter(json.dumps(row[key]) for row in rows if key in row)
        if key[0] in ALWAYS_MARKED:
            majority[key] = ALWAYS_MARKED[key[0]]
            continue
        majority[key] = "false" if key[0] == JOINT_KEY and "false" in counts else counts.most_common(1)[0][0]
    texts = []
    for row in rows:
        parts = [
            _describe_difference(key[0], value, json.loads(majority[key]))
            for key, value in row.items()
            if json.dumps(value) != majority[key]
        ]
        texts.append("; ".join(dict.fromkeys(parts)))
    return texts


def _describe_difference(name: str, value: Any, usual_value: Any) -> str:
    if name == ORDER_KEY:
        return ORDER_NOTE
    if name == USES_KEY:
        return f"uses {' and '.join(value).replace('_', ' ')}: not comparable with rows that do not"
    if name == NOISE_KEY:
        return f"wrong training labels: {value}"
    if isinstance(value, bool):
        return f"{name}={str(value).lower()}"
    if name == TARGET_TEST_IMAGES:
        return f"other {name}"
    text, usual_text = _abbreviate(value), _abbreviate(usual_value)
    if text == usual_text:
        return f"another {name}"
    return f"{name}{'=' if '.' in name else ' '}{text} (others {usual_text})"


def _abbreviate(value: Any) -> str:
    """Format a value of a footnote: equal channels once, a class order by its lessons, long texts cut."""
    if isinstance(value, list) and value and all(isinstance(v, list) for v in value):
        text = " | ".join(" ".join(map(str, v)) for v in value)
    elif isinstance(value, list):
        text = str(value[0]) if len(set(map(str, value))) == 1 else " ".join(map(str, value))
    elif isinstance(value, Mapping):
        text = ", ".join(f"{k} {v}" for k, v in value.items())
    else:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
