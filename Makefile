# `make check test` is what CI runs. Everything goes through uv, so that the locked versions are the ones used.
UV := python -m uv
RUN := $(UV) run
PACKAGES := grm envs policies shaping robot_io

.PHONY: demo test test-all check bench bench-rl build

demo:  ## One demonstration in, a trained policy and a page about it out
	$(RUN) grm demo

test:  ## The default suite: no network, no GPU, a few minutes on two cores
	$(RUN) pytest

test-all:  ## Also the learning and benchmark-sized tests
	$(RUN) pytest -m "not gpu and not hardware"

check:  ## Format, lint, types, import rules
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) basedpyright
	$(RUN) lint-imports --no-cache

bench:  ## Every table of the README, in the order they depend on each other; writes benchmarks/results/
	$(RUN) python -m benchmarks.render
	$(RUN) python -m benchmarks.latency
	$(RUN) python -m benchmarks.label_noise
	$(RUN) python -m benchmarks.visited
	$(RUN) python -m benchmarks.evaluation
	$(RUN) python -m benchmarks.red_team
	$(RUN) python -m benchmarks.baselines
	$(RUN) python -m benchmarks.serve
	$(RUN) python -m benchmarks.inspect
	$(RUN) python -m benchmarks.real_table
	$(RUN) python -m benchmarks.text.throughput
	$(RUN) python -m benchmarks.text.reuse
	$(RUN) python -m benchmarks.text.pav
	$(RUN) python -m benchmarks.text.spare
	$(RUN) python -m benchmarks.text.outcome_or_process --parts simulated
	$(RUN) python -m benchmarks.text.outcome_or_process --parts trained
	$(RUN) python -m benchmarks.text.bidirectional --worlds two_sided
	$(RUN) python -m benchmarks.text.bidirectional --worlds one_sided
	$(RUN) python -m benchmarks.text.lessons --fit-steps 0 --solutions 400 --exam 400
	$(RUN) python -m benchmarks.text.lessons
	$(RUN) python -m benchmarks.text.thinking
	$(RUN) python -m benchmarks.text.with_robot
	$(RUN) python -m benchmarks.semantic_trap
	$(RUN) python -m benchmarks.phi_entry --tasks push pick-place-wall --seeds 0 1
	$(RUN) python -m benchmarks.on_policy --tasks reach
	$(RUN) python -m benchmarks.success_threshold
	$(RUN) python -m benchmarks.success_threshold --arms grm_only_asked --name success_threshold_asked
	$(RUN) python -m benchmarks.faults --kills 60
	$(RUN) python -m benchmarks.session
	$(RUN) python -m benchmarks.demo

bench-rl:  ## From one demonstration, all arms on eight tasks: days of two cores; goes on where it was interrupted
	$(RUN) python -m benchmarks.one_shot_rl --merge

build:  ## Wheel and source archive, and a proof that the installed wheel holds the packages and nothing else
	rm -rf dist
	$(UV) build
	@set -eu; room=$$(mktemp -d); trap 'rm -rf "$$room"' EXIT; \
	$(UV) venv --quiet "$$room/venv"; \
	$(UV) pip install --quiet --no-deps --python "$$room/venv" dist/*.whl; \
	found=$$("$$room"/venv/bin/python -I -c 'from importlib.metadata import files; \
	print(*sorted({p.parts[0] for p in files("grm-robotics") if not p.parts[0].endswith(".dist-info") and p.parts[0] != ".."}))'); \
	expected=$$(printf '%s\n' $(PACKAGES) | sort | xargs); \
	[ "$$found" = "$$expected" ] || { echo "the wheel holds: $$found; expected: $$expected" >&2; exit 1; }; \
	"$$room"/venv/bin/python -I -c 'from importlib.metadata import files; found = {str(p) for p in files("grm-robotics")}; \
	wanted = {"grm/report/head.html", "grm/report/page.html", "grm/models/pretrained/model.safetensors"}; assert wanted <= found, wanted - found'; \
	echo "the wheel installs and holds exactly: $$found"
