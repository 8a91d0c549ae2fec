import numpy as np

from envs.experts import record
from envs.metaworld import MetaWorldEnv
from policies.clones import cloned_behaviour


def test_a_clone_does_what_it_was_shown_also_on_other_instances():
    env = MetaWorldEnv("reach", horizon=60)
    behaviour = cloned_behaviour(env, seed=5)
    distances = []
    for seed in range(4):
        episode = record(env, "cloned", seed=seed, provers=0, drawn_from=behaviour)
        to_goal = np.linalg.norm(episode.state[:, 6:9], axis=1)
        distances.append((to_goal[0], to_goal.min()))
    start, nearest = np.mean(distances, axis=0)
    assert nearest < 0.5 * start, "it goes to the goal"
    again = record(env, "cloned", seed=3, provers=0, drawn_from=cloned_behaviour(env, seed=5))
    np.testing.assert_array_equal(again.actions, episode.actions)
    env.close()
