import mujoco
import numpy as np
import pytest

from envs.appearance import Appearance
from envs.metaworld import MetaWorldEnv
from grm.errors import TaskError

VIEWS = ("corner", "behindGripper", "gripperPOV")


@pytest.fixture(scope="module")
def env():
    """Pick-place with three views, shared: every test resets it first and takes off what it put on."""
    env = MetaWorldEnv("pick-place", views=VIEWS, height=48, width=48)
    yield env
    env.close()


def stacked(env: MetaWorldEnv) -> np.ndarray:
    images = env.render_views()
    return np.stack([images[view] for view in VIEWS])


def model_bytes(env: MetaWorldEnv) -> bytes:
    buffer = np.empty(mujoco.mj_sizeModel(env.model), np.uint8)
    mujoco.mj_saveModel(env.model, None, buffer)
    return buffer.tobytes()


def rollout(env: MetaWorldEnv) -> list[np.ndarray]:
    env.reset(seed=3)
    generator = np.random.default_rng(0)
    states = []
    for step in range(12):
        action = env.expert_action() if step % 2 else generator.uniform(-1, 1, 4)
        env.step(action)
        states += [env.data.qpos.copy(), env.data.qvel.copy(), env.raw_state]
    return [*states, np.array(env.true_progress())]


def test_physics_and_truth_are_the_same_in_any_look(env):
    plain = rollout(env)
    look = Appearance(5)
    look.apply(env)
    dressed = rollout(env)
    look.undo(env)
    for one, other in zip(plain, dressed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_view_changes_at_once_and_undo_is_exact(env):
    env.reset(seed=1)
    env.step(np.ones(4))
    before, bytes_before = stacked(env), model_bytes(env)
    look = Appearance(2)
    look.apply(env)
    dressed = stacked(env)
    for view, one, other in zip(VIEWS, before, dressed, strict=True):
        assert np.abs(one.astype(int) - other).mean() > 3, view
    env.step(np.ones(4))
    look.undo(env)
    assert model_bytes(env) == bytes_before
    env.reset(seed=1)
    env.step(np.ones(4))
    np.testing.assert_array_equal(stacked(env), before)


def test_undo_without_a_step_between_shows_the_same_moment(env):
    env.reset(seed=1)
    env.step(np.ones(4))
    before = stacked(env)
    look = Appearance(7)
    look.apply(env)
    look.undo(env)
    np.testing.assert_array_equal(stacked(env), before)


def test_a_look_outlives_resets_and_follows_from_its_seed(env):
    looks = [Appearance.draw(np.random.default_rng(4)) for _ in range(2)]
    pictures = []
    for look in looks:
        look.apply(env)
        for _ in range(2):
            env.reset(seed=1)
            pictures.append(stacked(env))
        look.undo(env)
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_snapshot_and_restore_work_across_looks(env):
    env.reset(seed=1)
    moment = env.snapshot()
    env.restore(moment)
    before = stacked(env)
    look = Appearance(9)
    look.apply(env)
    env.reset(seed=2)
    env.step(np.ones(4))
    env.restore(moment)
    dressed = stacked(env)
    env.restore(moment)
    np.testing.assert_array_equal(stacked(env), dressed)
    look.undo(env)
    env.restore(moment)
    assert not np.array_equal(dressed, before)
    np.testing.assert_array_equal(stacked(env), before)


def test_no_strength_is_the_plain_look(env):
    env.reset(seed=1)
    before = stacked(env)
    look = Appearance(3, strength=0.0)
    look.apply(env)
    plain = stacked(env)
    look.undo(env)
    np.testing.assert_array_equal(plain, before)


def test_what_the_task_is_about_keeps_nearly_its_colour(env):
    geom = env.model.geom("objGeom").id
    before = env.model.geom_rgba[geom].copy()
    table = []
    for seed in range(20):
        look = Appearance(seed)
        look.apply(env)
        assert env.model.geom_rgba[geom] == pytest.approx(before, abs=0.25)
        table.append(env.model.geom_rgba[1, :3].copy())
        look.undo(env)
    assert np.std(table, axis=0).min() > 0.1, "tables all look the same"


def test_tracking_cameras_move_mildly(env):
    env.reset(seed=1)
    camera = env.model.camera("gripperPOV").id
    fixed = env.model.camera("corner").id
    before = env.data.cam_xpos.copy()
    moved = []
    for seed in range(20):
        look = Appearance(seed)
        look.apply(env)
        moved.append(np.abs(env.data.cam_xpos - before).max(1))
        look.undo(env)
    assert 0.005 < np.max(moved, axis=0)[camera] <= 0.04 / 3
    assert 0.015 < np.max(moved, axis=0)[fixed] <= 0.04
    np.testing.assert_array_equal(env.data.cam_xpos, before)


def test_distractors_are_in_pictures_only(env):
    env.reset(seed=1)
    geoms, counts = env.model.ngeom, set()
    for seed in range(15):
        look = Appearance(seed)
        look.apply(env)
        scene = mujoco.MjvScene(env.model, maxgeom=10)
        env.cameras.decorate(scene)
        counts.add(scene.ngeom)
        for geom in scene.geoms[: scene.ngeom]:
            assert np.all(geom.pos[2] > 0)
            assert abs(geom.pos[0]) >= 0.38 or geom.pos[1] <= 0.33, "where the task's things are"
        full = mujoco.MjvScene(env.model, maxgeom=1)
        env.cameras.decorate(full)
        assert full.ngeom <= 1
        look.undo(env)
    assert counts == {0, 1, 2, 3, 4}
    assert env.model.ngeom == geoms


def test_misuse_is_refused(env):
    look = Appearance(0)
    with pytest.raises(TaskError, match="not applied"):
        look.undo(env)
    look.apply(env)
    with pytest.raises(TaskError, match="wears an appearance"):
        Appearance(1).apply(env)
    other = MetaWorldEnv("reach", views=("corner",), height=16, width=16)
    with pytest.raises(TaskError, match="worn"):
        look.apply(other)
    other.close()
    look.undo(env)
    with pytest.raises(TaskError, match="0 \\(plain\\) to 1"):
        Appearance(0, strength=1.5)
    blind = MetaWorldEnv("pick-place")
    with pytest.raises(TaskError, match="without views"):
        look.apply(blind)
    blind.close()
