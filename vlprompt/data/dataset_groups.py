"""Sets of datasets that are one benchmark: VTAB-1k in its three groups, FGVC; the score is the mean of group means."""

from vlprompt.data.cards import cards
from vlprompt.runtime.errors import nearest
from vlprompt.runtime.paths import configs_folder


def groups() -> dict[str, dict[str, list[str]]]:
    """{set: {group: datasets}} as configs/groups.yaml has them.

    ValueError for what is no such mapping, for a dataset without a card and for one that stands twice in a set.
    """
    import yaml

    path = configs_folder() / "groups.yaml"
    try:
        told = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} must hold {{set: {{group: [dataset, ...]}}}}, not a {type(told).__name__}")
    known, found = cards(), dict[str, dict[str, list[str]]]()
    for name, of_set in told.items():
        if not isinstance(of_set, dict) or not all(isinstance(one, list) and one for one in of_set.values()):
            raise ValueError(f"{path}: {name} must hold {{group: [dataset, ...]}}, not {of_set!r}")
        every = [dataset for of_group in of_set.values() for dataset in of_group]
        if strange := [dataset for dataset in every if dataset not in known]:
            raise ValueError(
                f"{path}: {name} has the dataset {strange[0]!r}, no card; {nearest(str(strange[0]), known)}"
            )
        if twice := [dataset for dataset in every if every.count(dataset) > 1]:
            raise ValueError(f"{path}: {name} has the dataset {twice[0]!r} twice; it counts once")
        found[str(name)] = {str(group): list(of_group) for group, of_group in of_set.items()}
    return found


def members(name: str) -> list[str] | None:
    """The datasets of a set, group after group; None for a name that is no set."""
    of_set = groups().get(name)
    return None if of_set is None else [dataset for of_group in of_set.values() for dataset in of_group]
