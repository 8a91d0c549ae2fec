"""Every test runs offline, on one thread, and with MuJoCo's renderer chosen before MuJoCo is imported."""

import os
import tempfile

_home = tempfile.TemporaryDirectory(prefix="lerobot-")  # removed when the run ends
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_LEROBOT_HOME"] = _home.name
os.environ.setdefault("LP_NUM_THREADS", "1")  # software rendering would start a thread per core otherwise

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

import envs  # noqa: E402, F401  (before anything imports MuJoCo: it chooses MUJOCO_GL)

torch.set_num_threads(1)

# A shared machine stalls for a second now and then, longer than Hypothesis' own 200 ms for an example.
settings.register_profile("house", deadline=10_000)
settings.load_profile("house")
