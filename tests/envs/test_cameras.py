import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import cameras as cameras_module
from envs.cameras import _FACES, _MESH_CELL, PIXELS, Cameras, MultiViewObservation, _merge_vertices
from envs.metaworld import MetaWorldEnv
from grm.errors import RendererError, TaskError

SIZE = {"height": 24, "width": 32}


@pytest.fixture
def cheetah():
    env = gym.make("HalfCheetah-v5")
    env.reset(seed=0)
    yield env
    env.close()


@pytest.fixture
def hopper():
    env = gym.make("Hopper-v5")
    env.reset(seed=0)
    yield env
    env.close()


def test_any_gymnasium_mujoco_environment(cheetah):
    cameras = Cameras(cheetah, ("track",), **SIZE)
    image = cameras.render()["track"]
    assert image.shape == (24, 32, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10, "blank"
    for _ in range(10):
        cheetah.step(np.ones(6))
    assert np.abs(cameras.render()["track"].astype(int) - image).mean() > 1, "it moved, the image did not"
    cameras.close()


def test_meta_world_views_differ_and_come_in_the_order_asked():
    env = MetaWorldEnv("reach", views=("gripperPOV", "corner"), **SIZE)
    env.reset(seed=0)
    images = env.render_views()
    assert list(images) == ["gripperPOV", "corner"]
    assert all(image.std() > 10 for image in images.values())
    assert np.abs(images["corner"].astype(int) - images["gripperPOV"]).mean() > 5
    assert env.render().shape == (256, 256, 3)
    env.close()
    env.close()


def test_fast_and_faithful_differ_only_in_what_costs(cheetah):
    flags, samples = [], cheetah.unwrapped.model.vis.quality.offsamples
    images = []
    for quality in ("fast", "faithful"):
        cameras = Cameras(cheetah, ("track",), quality=quality, **SIZE)
        flags.append(cameras._renderer.scene.flags.copy())
        images.append(cameras.render()["track"])
        cameras.close()
    names = ("SHADOW", "REFLECTION", "SKYBOX", "HAZE")
    costly = {int(getattr(mujoco.mjtRndFlag, f"mjRND_{name}")) for name in names}
    assert set(np.flatnonzero(flags[0] != flags[1])) <= costly
    assert not flags[0][sorted(costly)].any()
    assert flags[1][int(mujoco.mjtRndFlag.mjRND_SHADOW)]
    assert images[0].shape == images[1].shape
    assert min(image.std() for image in images) > 10
    assert (images[0] != images[1]).any()
    assert cheetah.unwrapped.model.vis.quality.offsamples == samples, "the caller's model was changed for good"


def triangles(model) -> list[np.ndarray]:
    """Vertices (n, 3 corners, 3) of every mesh's triangles."""
    found = []
    for mesh in range(model.nmesh):
        vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        start = model.mesh_faceadr[mesh]
        found.append(vertices[model.mesh_face[start : start + model.mesh_facenum[mesh]]])
    return found


def test_merged_vertices_leave_fewer_triangles_near_where_they_were():
    model = MetaWorldEnv("reach").model
    before = triangles(model)
    kept = {name: getattr(model, name).copy() for name in _FACES}
    _merge_vertices(model, _MESH_CELL)
    after = triangles(model)
    counts = np.array([[len(old), len(new)] for old, new in zip(before, after, strict=True)])
    assert counts[:, 1].sum() < 0.6 * counts[:, 0].sum()
    assert (counts[:, 1] >= np.minimum(counts[:, 0], 4)).all(), "a mesh is gone"
    for old, new in zip(before, after, strict=True):
        if len(new) == len(old):
            continue
        width = min(_MESH_CELL, np.ptp(old.reshape(-1, 3), axis=0).max() / 20)
        cells = np.round(new / width).astype(int)
        for a, b in ((0, 1), (1, 2), (0, 2)):
            assert (cells[:, a] != cells[:, b]).any(-1).all(), "a triangle without a surface"
        assert len({frozenset(map(tuple, corners.tolist())) for corners in new}) == len(new), "the same one twice"
        size = np.ptp(old.reshape(-1, 3), axis=0), np.ptp(new.reshape(-1, 3), axis=0)
        np.testing.assert_allclose(size[1], size[0], atol=2.01 * width)
    for name, array in kept.items():
        getattr(model, name)[:] = array


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_keeps_its_meshes(monkeypatch, broken):
    env = MetaWorldEnv("reach")
    env.reset(seed=0)
    before = {name: getattr(env.model, name).copy() for name in dir(env.model) if name.startswith("mesh_")}
    seen = []

    def renderer(model, *size):
        seen.append(model.mesh_facenum.sum())
        raise RuntimeError("no GL")

    if broken:
        monkeypatch.setattr(mujoco, "Renderer", renderer)
        with pytest.raises(RendererError, match="no GL"):
            Cameras(env, ("corner",), **SIZE)
        assert seen[0] < before["mesh_facenum"].sum(), "the coarser meshes are what is rendered"
    else:
        Cameras(env, ("corner",), **SIZE).close()
    assert len(before) > 10
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(env.model, name), array, err_msg=name)


def test_coarser_meshes_make_nearly_the_same_picture(monkeypatch):
    env = MetaWorldEnv("door-unlock")
    env.reset(seed=0)
    views = ("corner", "behindGripper", "gripperPOV")
    coarse = Cameras(env, views, height=64, width=64)
    with monkeypatch.context() as patch:
        patch.setattr(cameras_module, "_merge_vertices", lambda model, cell: None)
        fine = Cameras(env, views, height=64, width=64)
    images, exact = coarse.render(), fine.render()
    for view in views:
        error = np.abs(images[view].astype(int) - exact[view])
        assert 0 < error.mean() < 4, view
        assert (error.max(-1) > 40).mean() < 0.05, view
    coarse.close()
    fine.close()


def test_rendering_is_deterministic_and_the_images_are_the_callers_own(cheetah):
    cameras, other = (Cameras(cheetah, ("track",), **SIZE) for _ in range(2))
    first, again = cameras.render()["track"], cameras.render()["track"]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, other.render()["track"])
    assert not np.shares_memory(first, again)
    assert first.flags.owndata
    assert first.flags.writeable
    kept = first.copy()
    for _ in range(5):
        cheetah.step(-np.ones(6))
    assert (cameras.render()["track"] != kept).any()
    np.testing.assert_array_equal(first, kept, err_msg="an image given away was drawn over")
    cameras.close()
    other.close()


def test_environments_do_not_bleed_into_each_other(cheetah, hopper):
    def film(env, action):
        cameras, images = Cameras(env, ("track",), **SIZE), []
        env.reset(seed=0)
        for _ in range(3):
            env.step(action)
            images.append(cameras.render()["track"])
        cameras.close()
        return images

    alone = film(cheetah, np.ones(6)), film(hopper, np.ones(3))
    mixed = [], []
    cameras = Cameras(cheetah, ("track",), **SIZE), Cameras(hopper, ("track",), quality="fast", **SIZE)
    cheetah.reset(seed=0)
    hopper.reset(seed=0)
    for _ in range(3):
        for env, action, camera, images in zip(
            (cheetah, hopper), (np.ones(6), np.ones(3)), cameras, mixed, strict=True
        ):
            env.step(action)
            images.append(camera.render()["track"])
    cameras[0].close()
    cameras[1].render()  # closing one leaves the other alive
    cameras[1].close()
    np.testing.assert_array_equal(mixed, alone)


def test_larger_than_the_models_framebuffer(cheetah):
    buffer = cheetah.unwrapped.model.vis.global_
    before = buffer.offwidth, buffer.offheight
    cameras = Cameras(cheetah, ("track",), height=before[1] + 8, width=before[0] + 8)
    assert cameras.render()["track"].shape == (before[1] + 8, before[0] + 8, 3)
    assert (buffer.offwidth, buffer.offheight) == before
    cameras.close()


def test_closed_twice_and_no_more_images(cheetah):
    cameras = Cameras(cheetah, ("track",), **SIZE)
    cameras.close()
    cameras.close()
    with pytest.raises(RendererError, match="closed"):
        cameras.render()


def test_what_has_no_such_camera_is_refused(cheetah):
    for views in (("trak",), ("track", "trak"), (), ("track", "track")):
        with pytest.raises(TaskError, match="of track") as caught:
            Cameras(cheetah, views, **SIZE)
        assert ("'trak'" in str(caught.value)) == ("trak" in views)
    with pytest.raises(TaskError, match="the model has none"):
        Cameras(gym.make("Reacher-v5"), ("track",), **SIZE)
    with pytest.raises(TaskError, match=r"CartPoleEnv has no MuJoCo"):
        Cameras(gym.make("CartPole-v1"), ("track",), **SIZE)
    with pytest.raises(TaskError, match="gripperPOV"):
        MetaWorldEnv("reach", views=("front",))


@pytest.mark.filterwarnings("ignore:.*")  # gymnasium's checker advises against unbounded spaces
def test_multi_view_observation(cheetah):
    env = MultiViewObservation(cheetah, ("track",), **SIZE)
    observation, _ = env.reset(seed=1)
    assert set(observation) == {"state", "pixels.track"}
    assert env.observation_space.contains(observation)
    assert env.observation_space.contains(env.step(env.action_space.sample())[0])
    np.testing.assert_array_equal(observation["state"], cheetah.reset(seed=1)[0])
    check_env(env, skip_render_check=True, skip_close_check=True)
    env.close()
    assert env.cameras._renderer is None


def test_terminal_observations_survive_the_reset():
    venv = DummyVecEnv([lambda: MetaWorldEnv("reach", views=("corner",), horizon=2, **SIZE)])
    venv.seed(0)
    venv.reset()
    venv.step(np.ones((1, 4)))
    observation, _, done, [info] = venv.step(np.ones((1, 4)))
    assert done[0]
    terminal = info["terminal_observation"][PIXELS + "corner"].copy()
    assert (terminal != observation[PIXELS + "corner"][0]).any()
    venv.step(-np.ones((1, 4)))
    np.testing.assert_array_equal(info["terminal_observation"][PIXELS + "corner"], terminal)
    venv.close()
