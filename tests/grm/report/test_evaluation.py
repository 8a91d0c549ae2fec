import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from grm.errors import OutputError
from grm.evaluate import Scored
from grm.metrics import LEVELS
from grm.report.evaluation import SIDE, draw, potential_panels, reliability_panels, risk_panels, write_plots

from ...tiny import square

SVG = "{http://www.w3.org/2000/svg}"


def scored(potential, truth, spread=0.1, *, behaviour="expert", task="right-v3") -> Scored:
    episode = dataclasses.replace(square(0, task=task, behaviour=behaviour, length=len(truth)), views={})
    columns = (np.full(len(truth), np.nan), np.array(potential, float), np.array(truth, float))
    return Scored(
        episode=episode,
        potential=columns[1],
        truth=columns[2],
        success=columns[0],
        spread=np.where(np.isnan(columns[1]), np.nan, spread),
        voc_minus=np.nan,
    )


def test_a_dot_per_judged_and_labelled_frame():
    items = [
        scored([0.0, np.nan, 1.0, 0.5], [0.0, 0.5, 0.5, np.nan]),
        scored([0.25, 0.75], [0.0, 0.0], behaviour="undo"),
        scored([0.25, 0.5], [0.1, 0.2], behaviour="learner"),
        scored([0.5, 0.5], [0.5, 0.5], task="<left> & right"),
    ]
    panels = potential_panels(items)
    assert [panel.title for panel in panels] == ["right-v3", "<left> & right"]
    clouds = [(x.tolist(), y.tolist()) for _, x, y in panels[0].dots]
    assert clouds == [([0.0, 0.5], [0.0, 1.0]), ([0.0, 0.0], [0.25, 0.75]), ([0.1, 0.2], [0.25, 0.5])]
    root = ElementTree.fromstring(draw(panels[:1], {}))
    drawn = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]
    assert drawn[:2] == [(0, SIDE), (SIDE / 2, 0)], "0 is at the bottom left, and up is less"
    assert len(drawn) == 6
    titles = [text.text for text in ElementTree.fromstring(draw(panels, {})).iter(f"{SVG}text")]
    assert "<left> & right" in titles


def test_curves_per_task_and_of_all():
    items = [
        scored([0.1, 0.5, 0.9], [0.0, 0.3, 0.3], [0.1, 0.2, 0.3]),
        scored([0.0, 1.0], [0.0, 1.0], [0.2, 0.2], task="left-v3"),
        scored([np.nan, np.nan], [0.0, 1.0], task="dark-v3"),
    ]
    risks = risk_panels(items)
    assert [panel.title for panel in risks] == ["right-v3", "left-v3", "all tasks"]
    [(_, coverage, risk)] = risks[0].lines
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk == pytest.approx([0.1, 0.15, 0.3])
    assert risks[0].top >= risk.max()
    [(_, nominal, share)] = reliability_panels(items)[1].lines
    assert nominal == pytest.approx(LEVELS)
    assert share == pytest.approx(np.ones(len(LEVELS))), "no error is within any interval"
    assert [panel.title for panel in risk_panels(items[:1])] == ["right-v3"], "all of one is no panel more"


def test_what_is_written(tmp_path: Path):
    items = [scored([0.1, 0.5, 0.9], [0.0, 0.3, 0.3])]
    paths = write_plots(items, tmp_path)
    assert [path.name for path in paths] == ["potential.svg", "risk_coverage.svg", "reliability.svg"]
    for path in paths:
        root = ElementTree.parse(path).getroot()
        assert root.tag == f"{SVG}svg"
        assert float(root.get("width", "0")) >= SIDE
    assert "visited by a learner" in paths[0].read_text()
    (tmp_path / "empty").mkdir()
    assert write_plots([scored([np.nan] * 2, [0.5] * 2), scored([0.5] * 2, [np.nan] * 2)], tmp_path / "empty") == []
    with pytest.raises(OutputError, match="cannot write"):
        write_plots(items, tmp_path / "nowhere")


def test_many_frames_are_thinned_out():
    truth = np.linspace(0, 1, 2000)
    [panel] = potential_panels([scored(truth, truth)])
    [(_, x, y)] = panel.dots
    assert len(x) == 600
    assert x[0] == 0
    assert x[-1] == 1
    np.testing.assert_array_equal(x, y)
