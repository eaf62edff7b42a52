"""The task of a stream of test images, and what is refused of a method whose answers depend on their order."""

import pytest
import torch

from vlprompt import methods as m
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.batch import Split
from vlprompt.engine.evaluate import collect_outputs
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.evaluation import evaluate_run
from vlprompt.experiments.learned.prompt import load_prompt
from vlprompt.experiments.runner import run
from vlprompt.results.comparability import ORDER_NOTE
from vlprompt.results.run_folder import RunFolder
from vlprompt.tasks.few_shot import FewShot
from vlprompt.tasks.online import Online, draw_order


def sharp(clip):
    """TDA with caches that have a say on a random CLIP."""
    return m.TDA(clip, alpha=50.0, negative_alpha=5.0, entropy_range=(0.0, 1.0))


@pytest.fixture(scope="module")
def clip():
    return build_tiny_clip()


@pytest.fixture(scope="module")
def finished(clip, tmp_path_factory):
    """Runs of zero-shot and TDA under the task, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    task = Online("digits", orders=3, shots=1)
    for method in (m.ZeroShot(clip), sharp(clip)):
        run(method, task, TrainConfig(epochs=1), folder / type(method).__name__)
    return folder


def test_an_order_is_drawn_by_the_seed():
    test = Split(tuple(range(40)), tuple(range(40)), tuple(map(str, range(40))))
    orders = [draw_order(test, seed, index).items for seed in (1, 2) for index in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert draw_order(test, 2, 1).items == orders[3]
    assert draw_order(test, 2, 1).labels == orders[3]


def test_the_protocol_names_the_orders_and_the_summary_is_over_them(finished):
    plain, online = (RunFolder(finished / name).read_finished() for name in ("ZeroShot", "TDA"))
    for result in (plain, online):
        accuracies = [result.scores[0][f"order_{k}"]["accuracy"] for k in (1, 2, 3)]
        assert result.summary["accuracy"] == pytest.approx(sum(accuracies) / 3)
        assert result.summary["order_std"] == pytest.approx(torch.tensor(accuracies).std(correction=0).item(), abs=1e-5)
        hashes = [order["test"] for order in result.protocol["orders"].values()]
        assert len({*hashes, result.protocol["test"]}) == 4
    assert plain.summary["order_std"] == 0
    assert online.summary["order_std"] > 0
    assert plain.protocol["orders"] == online.protocol["orders"]
    assert "order_dependent" not in plain.protocol


def test_every_table_marks_what_depends_on_the_order(finished, type_in):
    code, text = type_in("table", str(finished))
    assert code == 0
    assert ORDER_NOTE in text
    assert ORDER_NOTE not in type_in("table", str(finished / "ZeroShot"))[1]
    assert ORDER_NOTE in type_in("table", str(finished / "TDA"))[1]  # alone too


def test_an_evaluation_has_the_first_order(finished, clip, tmp_path):
    result = RunFolder(finished / "TDA").read_finished()
    evaluation = evaluate_run(finished / "TDA", None, None, None, False)
    assert evaluation.metrics["accuracy"] == result.scores[0]["order_1"]["accuracy"]
    assert "in the first order that seed 1 draws" in evaluation.notes[0]


def test_it_is_refused_where_inputs_have_no_order(finished, clip, tmp_path):
    with pytest.raises(ValueError, match=r"^TDA: expected a task whose test images are a stream.*--task online\.$"):
        run(m.TDA(clip), FewShot("digits", 1), TrainConfig(epochs=1))
    with pytest.raises(ValueError, match="expected a method that answers each input by itself, got"):
        load_prompt(finished / "TDA")
    with pytest.raises(ValueError, match="expected a method that answers each input by itself, got"):
        evaluate_run(finished / "TDA", None, None, None, False, figure_path=tmp_path / "figure.png")
    for orders in (0, 101):
        with pytest.raises(ValueError, match=rf"^task.orders: expected 1 to 100, got {orders}\. Set task.orders=3\.$"):
            Online("digits", orders=orders)


def test_what_ends_with_its_stream_is_not_saved(finished, type_in, tmp_path):
    code, text = type_in("save", str(finished / "TDA"), "model")
    assert code == 2
    assert "save: expected a prompt that answers each input by itself, got " in text
    assert "Share the command of its run instead." in text
    assert not (tmp_path / "model").exists()
    assert type_in("save", str(finished / "ZeroShot"), "model")[0] == 0


def test_a_batch_of_any_size_is_the_images_one_after_the_other(clip):
    method = sharp(clip)
    test = Online("digits", orders=1, shots=1).tests["order_1"].select(range(30))
    sizes = [collect_outputs(method, test, *sizes).logits for sizes in ((30,), (7,), (1,), (8, 3))]
    assert all(torch.allclose(sizes[0], other, atol=1e-4) for other in sizes[1:])
    backwards = collect_outputs(method, test.select(range(29, -1, -1)), 30).logits.flip(0)
    assert not torch.allclose(sizes[0], backwards, atol=0.1)
