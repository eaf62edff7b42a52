"""Epochs that a user gives win over the iterations of a recipe, and the reverse; both at once are refused."""

import pytest

from vlprompt.config.resolve import resolve_grid
from vlprompt.experiments.estimator.settings import resolve_settings
from vlprompt.experiments.model_cards.run_command import build_run_command


def find_length(*overrides, **options):
    [config] = resolve_grid(
        [options.pop("method", "clip_lora")], [4], [1], dataset="digits", overrides=overrides, **options
    )
    return config.train_config.epochs, config.train_config.iterations


def test_epochs_replace_the_iterations_of_a_recipe(tmp_path):
    assert find_length()[1] == 200  # of configs/few_shot/glyph/clip_lora.yaml
    assert find_length("train.epochs=9") == (9, None)
    assert find_length({"train": {"epochs": 9}}) == (9, None)
    file = tmp_path / "my.yaml"
    file.write_text("train: {epochs: 7}\n", "utf-8")
    assert find_length(config_file=file) == (7, None)
    assert find_length("train.iterations=30", config_file=file)[1] == 30
    assert find_length("train.iterations=30", method="coop")[1] == 30  # whose recipe has epochs


def test_a_file_with_both_means_what_a_runs_configuration_means(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("train: {epochs: 50, iterations: 200}\n", "utf-8")
    assert find_length(config_file=file) == (50, 200)
    assert find_length("train.epochs=3", config_file=file) == (3, None)


@pytest.mark.parametrize(
    "words", [("train.epochs=3", "train.iterations=30"), ("train.iterations=30", "train.epochs=3")]
)
def test_both_are_refused(type_in, words):
    code, text = type_in("run", "clip_lora", "digits", "--shots", "4", *words)
    assert code == 2
    assert "expected one length of the training, got 3 epochs and 30 iterations. Leave one of them out." in text
    assert find_length("train.iterations=null", "train.epochs=3") == (3, None)


def test_an_estimator_has_the_same_rule():
    given = ("PromptClassifier", "few_shot", "clip_lora", "glyph", 1)
    config = resolve_settings(*given, {"train__epochs": 9}, 4)
    assert (config.train["epochs"], config.train["iterations"]) == (9, None)
    with pytest.raises(ValueError, match="expected one length of the training"):
        resolve_settings(*given, {"train__epochs": 9, "train__iterations": 30}, 4)


@pytest.mark.parametrize(
    "overrides", [[], ["train.epochs=9"], ["train.iterations=30"], ["train.epochs=9", "train.lr=0.1"]]
)
def test_the_command_of_a_card_makes_the_run_again(overrides):
    options = {"dataset": "digits", "task": "few_shot", "backbone": "glyph"}
    [config] = resolve_grid(["clip_lora"], [4], [1], overrides=overrides, **options)
    words = build_run_command(config.to_dict()).split()
    [again] = resolve_grid(["clip_lora"], [4], [1], overrides=[w for w in words if w[:6] == "train."], **options)
    assert again.hash == config.hash
