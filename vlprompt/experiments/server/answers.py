"""What the routes return: schemas of the JSON bodies, for the server and its OpenAPI description."""

from pydantic import BaseModel, ConfigDict, Field

from vlprompt.core.class_names import Names
from vlprompt.experiments.learned.decision import UNKNOWN
from vlprompt.experiments.learned.prompt import Answers, list_labels
from vlprompt.experiments.server.neighbours import Neighbour


class ClassProbability(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class NearestImage(BaseModel):
    """A training image near the query; `image` is where its thumbnail is."""

    class_name: str
    similarity: float
    image: str


class Prediction(BaseModel):
    """The answer to an image.

    Args:
        image: what the client calls it.
        label: the best class, or `unknown` where the score is below the model's threshold; null for a model of several
            labels.
        labels: the classes that are the answer, by falling probability: the best one, none of an unknown image, or of a
            model of several labels those above its threshold.
        score: how well the image is known; of several labels the greatest probability.
        classes: the best classes with their probabilities.
        neighbours: the nearest training images, where they were asked for.
    """

    image: str
    label: str | None
    labels: list[str]
    is_unknown: bool
    score: float
    classes: list[ClassProbability]
    neighbours: list[NearestImage] = []


class PredictAnswer(BaseModel):
    """The answer of `POST /predict`."""

    model: str
    predictions: list[Prediction]


class LabelDecision(BaseModel):
    """How logits become several labels: those whose odds, as logarithms, exceed the threshold.

    Args:
        probability: that of the threshold.
        n_validation: on how many images it was chosen; 0 for none: its probability is then one half.
    """

    reading: str
    threshold: float
    probability: float
    n_validation: int


class Decision(BaseModel):
    """How logits become an answer; `labels` is there for several."""

    temperature: float
    score: str
    threshold: float | None
    labels: LabelDecision | None = None


class Model(BaseModel):
    """A model of the server.

    Args:
        reads_names: whether it answers about new classes by their names.
        summary: the scores of its run, in percent.
        has_neighbours: whether its training images are there.
    """

    name: str
    method: str
    backbone: str
    classes: list[str]
    reads_names: bool
    summary: dict[str, float]
    decision: Decision
    has_neighbours: bool = False


class ModelBody(BaseModel):
    """The JSON body of `POST /models`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Of the model; one that is there is replaced.")
    folder: str = Field(description="A run or model folder, relative to the folder of --models.")


class ClassesBody(BaseModel):
    """The JSON body of `POST /classes`."""

    model_config = ConfigDict(extra="forbid")

    classes: list[str]
    model: str | None = None


class ClassList(BaseModel):
    """A list of classes that a model can answer about; the id "" is what it was trained on."""

    model: str
    id: str
    classes: list[str]


class Health(BaseModel):
    """Whether the server answers, and how many models it has; without a token, so it names none."""

    status: str
    models: int


def describe_answers(
    answers: Answers,
    images: list[str],
    names: Names,
    top_k: int,
    neighbours: list[list[Neighbour]],
    model: str,
    has_several_labels: bool = False,
) -> PredictAnswer:
    """Return the answers to images as JSON values.

    Args:
        answers: to B images among C classes.
        images: what the client calls them (B).
        names: of the classes (C).
        top_k: how many classes of each.
        neighbours: of each image; [] where they were not asked for.
        model: its name.
        has_several_labels: whether an image may have several labels.
    """
    labels = list_labels(answers.probabilities, answers.is_given, list(map(str, names)))
    values, indices = answers.probabilities.topk(min(top_k, len(names)), dim=1)
    rows = zip(
        images, values.tolist(), indices.tolist(), answers.scores.tolist(), answers.is_unknown.tolist(), strict=True
    )
    predictions = list[Prediction]()
    for number, (image, probabilities, order, score, is_unknown) in enumerate(rows):
        classes = [
            ClassProbability(name=str(names[i]), probability=value)
            for i, value in zip(order, probabilities, strict=True)
        ]
        nearest = [
            NearestImage(class_name=n.class_name, similarity=n.similarity, image=f"/neighbours/{model}/{n.index}")
            for n in (neighbours[number] if neighbours else ())
        ]
        label = None if has_several_labels else UNKNOWN if is_unknown else classes[0].name
        facts = {"image": image, "label": label, "labels": labels[number], "is_unknown": is_unknown, "score": score}
        predictions.append(Prediction(**facts, classes=classes, neighbours=nearest))
    return PredictAnswer(model=model, predictions=predictions)
