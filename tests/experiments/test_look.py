"""Pictures of what was learned: their numbers, the files, and what a method does not have."""

import csv

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

import vlprompt
from vlprompt.cli.app import main
from vlprompt.core.batch import Split
from vlprompt.core.templates import PromptTemplate
from vlprompt.experiments.look.attention import compute_attention
from vlprompt.experiments.look.choices import compute_prompt_usage, compute_pseudo_labels
from vlprompt.experiments.look.features import Features, compute_text_similarity, project_features
from vlprompt.experiments.look.figures import build_look_figures
from vlprompt.experiments.look.subject import PictureUnavailableError, open_stage, sample_split, select_test
from vlprompt.experiments.look.words import find_nearest_words
from vlprompt.results.plots.learned.attention import plot_attention
from vlprompt.results.plots.learned.similarity import plot_similarity
from vlprompt.results.plots.learned.words import plot_words


def train(folder, *words):
    with pytest.raises(SystemExit) as end:
        main(["run", *words, "--out", str(folder)])
    assert not end.value.code
    [result] = folder.glob("*/result.json")
    return result.parent


def look(*words):
    with pytest.raises(SystemExit) as end:
        main(["look", *map(str, words)])
    return end.value.code


@pytest.fixture(scope="module")
def coop_run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("coop"), "coop", "digits", "--shots", "1", "train.epochs=1", "method.n_ctx=2")


@pytest.fixture(scope="module")
def coop(coop_run):
    return vlprompt.load_prompt(coop_run)


@pytest.fixture(scope="module")
def test_split(coop):
    return select_test(open_stage(coop))


@pytest.mark.slow
def test_nearest_words_are_those_of_all_distances(coop, test_split):
    words = find_nearest_words(coop, 3, test_split)
    table, ctx = coop.method.clip.text.token_embeddings.double(), coop.method.ctx.detach().double()
    for row, distances, token in zip(words.words, words.distances, ctx, strict=True):
        expected = (table - token).square().sum(1).sqrt()
        nearest = expected.argsort()[:3]
        assert [coop.method.clip.text.tokenizer.decode(int(i)) for i in nearest] == list(row)
        assert np.allclose(distances, expected[nearest], rtol=1e-4)
    assert "seldom mean anything" in words.note


def test_similarity_before_is_zero_shots_and_after_is_the_prompts(coop, test_split):
    similarity, clip = compute_text_similarity(coop, test_split), coop.method.clip
    template = PromptTemplate.parse(test_split.names[0].template)
    with torch.no_grad():
        before = clip.unit(clip.text([template.fill({"name": name}) for name in test_split.names])[0])
        after = clip.unit(coop.prepare(test_split.names))
    assert np.allclose(similarity.before, before @ before.T, atol=1e-5)
    assert np.allclose(similarity.after, after @ after.T, atol=1e-5)
    assert np.abs(similarity.before - similarity.after).max() > 1e-3


def test_attention_of_a_prompt_leaves_the_prompt_as_it_is(coop, test_split):
    items = test_split.items[:3]
    before = coop.answer(items).probabilities
    attention = compute_attention(coop, items)
    assert list(attention.maps) == ["class token,\nlast layer", "class token,\nrollout"]
    assert attention.maps["class token,\nlast layer"].shape == (3, *coop.method.clip.image.grid)
    assert attention.on_prompts.tolist() == [0, 0, 0]
    assert torch.equal(coop.answer(items).probabilities, before)
    assert coop.method.clip.image.recorder is None


def test_plots_take_axes(coop, test_split):
    figure, axes = plt.subplots(1, 3)
    values = (
        find_nearest_words(coop),
        compute_text_similarity(coop, test_split),
        compute_attention(coop, test_split.items[:1]),
    )
    for plot, value, given in zip((plot_words, plot_similarity, plot_attention), values, axes, strict=True):
        assert plot(value, given) is given
        assert given.get_title()
    plt.close(figure)


def test_the_command_writes_pictures_and_numbers(coop_run, tmp_path, capsys):
    assert not look(coop_run, "--what", "words,similarity", "--out", tmp_path, "--format", "png,svg")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"words.png", "words.svg", "words.csv", "similarity.png", "similarity.svg", "similarity.csv"}
    rows = list(csv.DictReader((tmp_path / "similarity.csv").open(encoding="utf-8")))
    assert len(rows) == 45
    assert -1 <= float(rows[0]["before"]) <= 1
    assert "seldom mean anything" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what", "usage"], "expected a method with a pool of prompts, got coop"),
        (["--what", "pseudo"], "expected a run with unlabelled images of a target"),
        (["--what", "wrods"], "got 'wrods'"),
        (["--what", "words", "--format", "gif"], "expected png, pdf, svg, got 'gif'"),
    ],
)
def test_what_is_not_there_is_one_error(coop_run, tmp_path, capsys, words, message):
    assert look(coop_run, *words, "--out", tmp_path) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_opaque_tower_and_a_method_without_texts_are_refused_by_name(tmp_path, capsys):
    run = train(tmp_path / "runs", "linear", "digits", "--shots", "1", "--backbone", "pixels", "train.epochs=1")
    for what, message in (("attention", "opaque image tower of pixels"), ("words", "no text tower that takes tokens")):
        assert look(run, "--what", what) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_few_points_and_many_classes(test_split):
    features = Features(np.eye(8), np.arange(8), np.zeros((0, 8)), tuple("abcdefgh"))
    projection = project_features(features)
    assert "perplexity 2.33333" in projection.note
    assert np.array_equal(projection.points, project_features(features).points)  # the seed is fixed
    with pytest.raises(PictureUnavailableError, match="at least 5 images and class texts, got 3"):
        project_features(Features(np.eye(3), np.arange(3), np.zeros((0, 3)), tuple("abc")))
    names = tuple(map(str, range(1000)))
    split = Split(tuple(test_split.items[:1]) * 3000, tuple(i % 1000 for i in range(3000)), names)
    drawn, note = sample_split(split)
    assert len(drawn.names) == 20
    assert note == "60 of 3,000 test images of 20 of 1,000 classes, evenly spaced"


@pytest.mark.slow
def test_class_specific_tokens_are_named_by_class(tmp_path):
    run = train(
        tmp_path, "coop", "digits", "--shots", "1", "train.epochs=1", "method.n_ctx=1", "method.class_specific=true"
    )
    words = find_nearest_words(vlprompt.load_prompt(run), 1)
    assert words.tokens[:2] == ("zero 1", "one 1")
    assert len(words.tokens) == 10


@pytest.mark.slow
def test_pools_and_their_attention(tmp_path):
    prompt = vlprompt.load_prompt(train(tmp_path, "l2p", "digits", "--task", "continual", "train.epochs=1"))
    test = select_test(open_stage(prompt))
    usage = compute_prompt_usage(prompt, test)
    assert np.allclose(usage.by_lesson.sum(1), 1)
    assert np.allclose(usage.by_class.sum(1), 1)
    assert usage.lessons == ("1", "2", "3", "4", "5")
    attention = compute_attention(prompt, test.items[:2], test.names)
    assert len(attention.maps) == 4
    assert (attention.on_prompts > 0).all()


@pytest.mark.slow
def test_pseudo_labels_of_a_target_and_all_pictures(tmp_path):
    run = train(tmp_path, "dapl", "--source", "glyphs", "--target", "digits", "train.epochs=1")
    prompt = vlprompt.load_prompt(run)
    stage = open_stage(prompt)
    labels = compute_pseudo_labels(prompt, stage)
    assert ((labels.confidence >= prompt.method.threshold) == labels.is_confident).all()
    precision = 100 * (labels.predicted == labels.truth)[labels.is_confident].mean()
    assert precision > 80
    names = [figure.name for figure in build_look_figures(prompt)]
    assert names == ["words", "similarity", "tsne", "umap", "attention", "pseudo"]
