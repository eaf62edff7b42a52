"""What tells results apart: the settings of rows of one method, and the protocols of rows in one table.

Numbers of different protocols in one column are only shown with a letter each, and a footnote that says what differs.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlprompt.results.run_folder import Result

STREAM, DOMAIN = "continual", "domain"
OF_DOMAINS = ("classes", "val", "shots")  # settings of domains that are their protocol
OF_STREAMS = (
    "order",
    "joint",
    "mask",
    "buffer",
    "blur",
    "with_val",
    "shots",
)  # settings of a stream that are its protocol
JOINT, IMAGES = "task.joint", "test images of the target"  # which differ from pair to pair
WORDS = {(JOINT, True): "joint training", (JOINT, False): "", ("task.mask", True): "", ("task.mask", False): "no mask"}
Facts = dict[tuple[str, str], Any]  # (what, among which rows it is compared) -> value


class Notes:
    """Footnotes: each text has one mark, in the order of their first use."""

    def __init__(self, letters: bool):
        self.texts, self.letters = list[str](), letters

    def mark(self, text: str) -> str:
        if text not in self.texts:
            self.texts.append(text)
        return self._sign(self.texts.index(text))

    def _sign(self, i: int) -> str:
        if not self.letters:
            return str(i + 1)
        return ("" if i < 26 else self._sign(i // 26 - 1)) + chr(ord("a") + i % 26)

    def lines(self) -> list[str]:
        return [f"{self._sign(i)}: {text}" for i, text in enumerate(self.texts)]


def stages(result: Result, every: Sequence[Result]) -> int | None:
    """How many lessons a stream has; of joint training, how many it would have had. None: no stream, or not known."""
    task = result.config["task"]
    if task["name"] != STREAM:
        return None
    if not task.get("joint"):
        return result.protocol.get("stages") or len(result.scores)
    if (told := task.get("stages")) is not None:
        return told if isinstance(told, int) else len(told)
    like = [r for r in every if _place(r) == _place(result) and not r.config["task"].get("joint")]
    found = Counter(stages(r, every) for r in like if r.config["task"].get("stages") is None)  # what the card says
    return found.most_common(1)[0][0] if found else None


def pair(result: Result) -> tuple[tuple[str, ...], str]:
    """The domains that a run of the task domain learned from (none, one or several), and the one it is tested on."""
    return tuple(result.protocol["sources"]), result.protocol["target"]


def _place(result: Result) -> tuple[str, str, str]:
    task = result.config["task"]
    if task["name"] == DOMAIN:
        many = {0: ", no source", 1: ""}.get(len(pair(result)[0]), ", several sources")
        return DOMAIN, result.protocol["dataset"], task["setting"] + many
    return task["name"], str(task.get("dataset")), str(task.get("kind")) if task["name"] == STREAM else ""


def table_of(result: Result, every: Sequence[Result]) -> tuple[str, str, str, int | None]:
    """Which table a result belongs to: task, dataset, kind and number of stages of a stream."""
    return *_place(result), stages(result, every)


def same(result: Result) -> str:
    """What runs that differ only by their seed have in common, the test images and a fixed class order included."""
    config = json.loads(json.dumps(result.config))
    config.pop("seed")
    config["task"].pop("seed", None)
    return json.dumps([config, result.protocol.get("test"), _fixed_order(result)], sort_keys=True)


def _fixed_order(result: Result) -> Any:
    """The class order of a stream where no seed draws it."""
    return None if result.config["task"].get("order") == "seeded" else result.protocol.get("class_order")


def _settings(result: Result) -> dict[str, Any]:
    """All settings in which two rows may differ; the pair of domains is no setting but a column."""
    domain = result.config["task"]["name"] == DOMAIN
    known = {"name", "seed", "dataset", *(("source", "target") if domain else ("shots",))}
    found = {f"{s}.{k}": v for s in ("method", "task", "train") for k, v in result.config[s].items() if k not in known}
    found |= {f"look.{k}": v for k, v in result.protocol.get("transform", {}).items()}
    return found | {"images.test": result.protocol.get("test"), "images.class_order": _fixed_order(result)}


def variants(results: Sequence[Result]) -> dict[str, str]:
    """For each configuration, what tells it from others of its method: the method's settings, and more where needed."""
    families: dict[tuple[str, ...], dict[str, tuple[str, dict[str, Any]]]] = {}
    for r in results:
        c = r.config
        family = c["method"]["name"], c["backbone"], str(table_of(r, results))
        column = str(pair(r)) if c["task"]["name"] == DOMAIN else str(c["task"].get("shots"))
        families.setdefault(family, {})[same(r)] = column, _settings(r)
    found = {}
    for members in families.values():
        keys = sorted({k for _, told in members.values() for k in told})
        differ = [k for k in keys if _many(k, list(members.values()))]
        for sections in (("method",), ("method", "task"), ("method", "task", "train", "look", "images")):
            chosen = [k for k in differ if k.partition(".")[0] in sections]
            if len({(at, *(json.dumps(t.get(k)) for k in chosen)) for at, t in members.values()}) == len(members):
                break
        for key, (_, told) in members.items():
            here = [*chosen, *([JOINT] if told.get(JOINT) is True and JOINT not in chosen else [])]  # told always
            parts = [
                _said(k, told[k], [t.get(k) for _, t in members.values()]) for k in here if told.get(k) is not None
            ]
            found[key] = ", ".join(part for part in parts if part)
    return found


def _many(key: str, members: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether rows differ in this; other columns have other images anyway."""
    images = key.startswith("images.")
    told = {(at if images else "", json.dumps(told.get(key))) for at, told in members}
    return len(told) > len({at for at, _ in told})


def _said(key: str, value: Any, every: Sequence[Any]) -> str:
    if isinstance(value, bool) and (key, value) in WORDS:
        return WORDS[key, value]
    told = _brief(value) if key == "images.class_order" else _short(value, every)
    return f"{key.partition('.')[2]}={told}"


def _short(value: Any, every: Sequence[Any]) -> str:
    """A value among others: letters of a list in a row, settings of a reader or method by their name if that tells."""
    if isinstance(value, dict) and "name" in value:
        same_name = {json.dumps(v) for v in every if isinstance(v, dict) and v.get("name") == value["name"]}
        return value["name"] if len(same_name) == 1 else str(value)
    return "".join(map(str, value)) if isinstance(value, list) and all(len(str(v)) == 1 for v in value) else str(value)


def facts(runs: Sequence[Result]) -> Facts:
    """What a result's protocol says, of all seeds of one configuration.

    The look and the weights are compared among rows of one backbone, the class order among those of one setting and
    seed, test images among those that chose the same classes or domains.
    """
    config, protocol = runs[0].config, runs[0].protocol
    task, backbone = config["task"], config["backbone"]
    chosen = json.dumps([task.get(k) for k in ("base", "targets", "source", "target")])
    images = IMAGES if task["name"] == DOMAIN else "test images"
    found: Facts = {(images, chosen): protocol.get("test"), ("weights", backbone): protocol.get("backbone_key")}
    found |= {(k, ""): protocol.get(k) for k in ("augment", "split", "views")}
    found |= {(f"look.{k}", backbone): v for k, v in protocol.get("transform", {}).items()}
    found |= {(f"metric {k}", ""): v for k, v in protocol.get("metrics", {}).items()}
    if task["name"] == STREAM:
        found |= {(f"task.{k}", ""): "all" if k == "shots" and task[k] is None else task[k]
                  for k in OF_STREAMS if k in task and (k != "blur" or task.get("kind") == "task_free")}  # fmt: skip
        setting = json.dumps([task.get("order"), task.get("joint")])
        found |= {("class order", f"{setting} {r.config['seed']}"): r.protocol.get("class_order") for r in runs}
    if task["name"] == DOMAIN:
        found |= {(f"task.{k}", ""): "all" if task[k] is None else task[k] for k in OF_DOMAINS if k in task}
        found |= {(k, chosen): protocol.get(k) for k in ("transductive", "template", "zero_shot_template", "matched")}
        if runs[0].cost["trained_parameters"] and config["train"].get("select") != "oracle":  # which has its own mark
            found["selection", ""] = protocol.get("selection")
    return {k: v for k, v in found.items() if v is not None}


def differing(rows: Sequence[Facts]) -> list[str]:
    """For each row of a table what its protocol has otherwise than most; empty where nothing. Unknown is no other."""
    usual: dict[tuple[str, str], str] = {}
    for key in dict.fromkeys(k for row in rows for k in row):
        counts = Counter(json.dumps(row[key]) for row in rows if key in row)
        usual[key] = "false" if key[0] == JOINT and "false" in counts else counts.most_common(1)[0][0]
    found = []
    for row in rows:
        parts = [_differs(key[0], value, json.loads(usual[key])) for key, value in row.items()
                 if json.dumps(value) != usual[key]]  # fmt: skip
        found.append("; ".join(dict.fromkeys(parts)))
    return found


def _differs(what: str, value: Any, usual: Any) -> str:
    if isinstance(value, bool):
        return f"{what}={str(value).lower()}"
    if what == IMAGES:
        return f"other {what}"
    mine, others = _brief(value), _brief(usual)
    return f"another {what}" if mine == others else f"{what}{'=' if '.' in what else ' '}{mine} (others {others})"


def _brief(value: Any) -> str:
    """A value in a footnote: equal channels once, a class order by its lessons, what is long cut."""
    if isinstance(value, list) and value and all(isinstance(v, list) for v in value):
        text = " | ".join(" ".join(map(str, v)) for v in value)
    elif isinstance(value, list):
        text = str(value[0]) if len(set(map(str, value))) == 1 else " ".join(map(str, value))
    elif isinstance(value, Mapping):
        text = ", ".join(f"{k} {v}" for k, v in value.items())
    else:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
