install:
	python3 -m venv .venv && .venv/bin/pip install --quiet --require-hashes -r constraints.txt && .venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
