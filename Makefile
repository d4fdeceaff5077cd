# Everything runs from one virtual environment, .venv, made from what python3 brings along.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help run test test-slow simulate locust compare choose headline failovers profile benchmark lint format first-steps lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1 \2/p' Makefile | while read -r name text; do printf '%-11s %s\n' "$$name" "$$text"; done

run: .venv/serve  ## serve on 127.0.0.1:8080 with an embedded Valkey; ARGS='--port 8081'
	@$(BIN)/pythonricing serve $(ARGS)

# They wait for servers more than they compute, hence four at once.
test: lint  ## lint, types and every test that needs neither root nor containers; ARGS=--cov for the coverage
	$(BIN)/pytest -m "not slow" --numprocesses 4 $(ARGS)

test-slow: .venv/dev  ## the tests that need minutes, a browser or containers
	$(BIN)/pytest -m slow

simulate: .venv/dev  ## the whole service and its stores on simulated time, from seeds
	$(BIN)/python -m tests.simulation $(ARGS)

locust: .venv/dev  ## Locust's web UI on 127.0.0.1:8089, Granian and uvicorn side by side
	$(BIN)/locust -f loadtests/locustfile.py --class-picker --web-host 127.0.0.1 $(ARGS)

compare: .venv/dev  ## measure servers, stores and peers; ARGS=--publish writes docs/benchmarks.md too
	$(BIN)/python -m loadtests compare $(ARGS)

choose: .venv/dev  ## Granian and uvicorn: TLS, HTTP/2, slow readers, restarts, memory; ARGS=--quick for two minutes
	$(BIN)/python -m loadtests choose $(ARGS)

headline: .venv/dev  ## ab -n 10000 -c 10, 16 workers, limit 100: synced against unsynced
	$(BIN)/python -m loadtests headline $(ARGS)

failovers: .venv/dev  ## failovers, a migration and partitions under load; ARGS=--publish writes docs/failovers.md
	$(BIN)/python -m loadtests.failovers $(ARGS)

profile: .venv/dev  ## a flame graph of a worker under load; writes results/profile.svg
	$(BIN)/python -m loadtests profile $(ARGS)

benchmark: .venv/dev  ## the claim path without sockets
	$(BIN)/pytest tests/counting/test_claim_path.py --benchmark-only

first-steps: .venv/dev  ## record docs/first-steps.md anew; needs tmux and port 8080
	$(BIN)/python -m tests.first_steps

lint: .venv/dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs-check
lint: docs-check
docs-check: .venv/dev  ## hold README and docs to the links, commands, settings and paths that exist
	$(BIN)/python -m tests.docs_check

# The package's metadata has its version from there.
.venv/serve .venv/dev: pythonricing/__init__.py

.PHONY: image sbom
image:  ## build the image with its revision and date; needs podman
	podman build --label org.opencontainers.image.revision="$$(git describe --always --abbrev=40 --dirty --match=)" \
		--label org.opencontainers.image.created="$$(date -u +%Y-%m-%dT%H:%M:%SZ)" --tag localhost/pythonricing $(ARGS) .

sbom: .venv/dev  ## what is in the image, and under which licences; writes results/sbom.json (CycloneDX); needs podman
	@mkdir -p results
	@container="$$(podman create localhost/pythonricing)" && trap "podman rm $$container >/dev/null" EXIT \
		&& podman export "$$container" | $(BIN)/python deploy/image/sbom.py results/sbom.json

# pip 23.2, which Python 3.11.7 brings along, forgets the pin of what is asked for with an extra: hence --no-strip-extras.
lock:  ## resolve the dependencies anew; needs uv
	uv pip compile --upgrade --no-strip-extras --generate-hashes --universal --no-emit-index-url --no-header --python-version 3.11 \
		--all-extras pyproject.toml --output-file requirements/dev.lock
	uv pip compile --no-strip-extras --generate-hashes --universal --no-emit-index-url --no-header --python-version 3.11 \
		--extra embedded --extra watch --constraint requirements/dev.lock pyproject.toml --output-file requirements/serve.lock
	uv pip compile --generate-hashes --universal --no-emit-index-url --no-header --python-version 3.13 \
		--constraint requirements/dev.lock pyproject.toml --output-file requirements/image.lock
	uv pip compile --generate-hashes --universal --no-emit-index-url --no-header --python-version 3.13 \
		--extra postgres --constraint requirements/dev.lock pyproject.toml --output-file requirements/image-postgres.lock
	echo hatchling | uv pip compile --generate-hashes --universal --no-emit-index-url --no-header --python-version 3.13 \
		--constraint requirements/dev.lock - --output-file requirements/build.lock

clean:  ## remove the virtual environment and every cache
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer: name one that is, as in PYTHON=python3.12 make run" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

# The stamps are files in .venv, so that a changed lock file installs again and nothing else does.
.venv/serve: requirements/serve.lock pyproject.toml | .venv/bin/python
	@$(PIP) install --require-hashes --requirement requirements/serve.lock
	@$(PIP) install --no-deps --editable .
	@touch $@

.venv/dev: requirements/dev.lock pyproject.toml | .venv/bin/python
	@$(PIP) install --require-hashes --requirement requirements/dev.lock
	@$(PIP) install --no-deps --editable .
	@touch $@ .venv/serve
