"""Tasks that know the truth: simulated tasks with cameras, scripted experts and true progress.

Importing this package registers `grm/MetaWorld-v0` with gymnasium; nothing else happens at import.
"""

import gymnasium

gymnasium.register(id="grm/MetaWorld-v0", entry_point="envs.metaworld:MetaWorldEnv")
