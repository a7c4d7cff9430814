# Two commands: `make demo` shows the main job, `make test` runs the whole test suite.
# Everything fetched is pinned by version and hash and lands in this folder (.venv, .runtime, target).

PYTHON ?= python3
VENV := .venv/bin/python
ONNX := PYTHONPATH=onnx $(VENV) -m cdal_onnx

.PHONY: build deb demo check test grids soak fleet-soak queue fuzz overhead dimse peers python runtime train-phantom lock clean

build: runtime
	cargo build --release --locked

# A Debian package of the daemon in target/debian; needs `cargo install cargo-deb`.
deb: build
	cargo deb --no-build --locked

# Daemon and workstation on this machine: series in, masks out, compared with the truth.
demo: build
	$(VENV) tests/demo.py

# A fast look while writing: format, lints, unit tests. Needs neither peers nor, for most tests, the runtime.
check:
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo test --locked --lib

test: runtime peers
	cargo test --locked
	$(VENV) -m unittest discover -s tests/python

# What other voxel sizes and tilted series cost the hippocampus model: copies of its 30 validation volumes, one vote each.
grids: build
	$(VENV) tests/grids.py --votes 1

# Kills the daemon at random while dcmtk sends and destinations misbehave; prints what became of every object.
# Seconds and seed: make soak CDAL_SOAK_SECONDS=3600 CDAL_SOAK_SEED=2
soak: export CDAL_SOAK_SECONDS ?= 600
soak: export CDAL_SOAK_SEED ?= 1
soak: peers
	cargo test --locked --test it -- --ignored --exact --nocapture crash::soak

# How many jobs in a second the queue on PostgreSQL carries by itself, with 1, 2 and 3 devices.
queue: peers
	cargo test --locked --test it -- --ignored --exact --nocapture shared::throughput

# Kills a device at 200 random moments of updates under load; prints where it was and what became of every series.
# Kills and seed: make fleet-soak CDAL_FLEET_KILLS=20 CDAL_SOAK_SEED=2
fleet-soak: runtime
	cargo test --locked --test it -- --ignored --exact --nocapture fleet_agent::soak

# Fuzzes every parser of outside bytes for a while each; needs `cargo install cargo-fuzz`. Coverage is a flag that the
# stable compiler has and hides: RUSTC_BOOTSTRAP shows it, in this target alone. What is found lands in fuzz/artifacts; a
# fault that is mended leaves its input in fuzz/corpus, which `make test` reads.
# How long, in seconds: make fuzz CDAL_FUZZ_SECONDS=3600
fuzz: export CDAL_FUZZ_SECONDS ?= 120
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz:
	for target in dicom series dimse serial nifti manifest configuration; do \
		mkdir -p fuzz/target/found/$$target; \
		cargo fuzz run --fuzz-dir fuzz --sanitizer none $$target fuzz/target/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$$CDAL_FUZZ_SECONDS -timeout=10 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1 \
			|| exit 1; \
	done

# What the daemon adds to the model's own time: latency of one case, throughput with 16 senders, memory over 2,000 cases.
# Reports go to target/overhead; another model: make overhead MODEL=models/mine
MODEL ?= onnx/lung
OVERHEAD := target/release/cdal bench daemon --bundle $(MODEL)
overhead: build
	mkdir -p target/overhead
	$(OVERHEAD) --cases 200 --json target/overhead/latency.json --html target/overhead/latency.html
	$(OVERHEAD) --cases 640 --associations 16 --warm-up 16 --json target/overhead/throughput.json --html target/overhead/throughput.html
	$(OVERHEAD) --cases 2000 --associations 4 --warm-up 8 --votes 1 --json target/overhead/memory.json --html target/overhead/memory.html

# What it saves to acknowledge at once whatever a DICOM peer sends: 22 objects by storescu, and to storescp.
dimse: peers
	cargo bench --locked --bench dimse

# The programs that the tests talk to: dcmtk, dicom3tools, gdcm, socat, Orthanc with DICOMweb, PostgreSQL, chromium.
peers:
	tests/peers.sh

python: .venv/ready
.venv/ready: onnx/requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else \
		f"Python 3.11 or 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}; give another: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(VENV) -m pip install --quiet --disable-pip-version-check --require-hashes -r onnx/requirements.txt
	touch $@

runtime: .runtime/ready
.runtime/ready: .venv/ready onnx/cdal_onnx/runtime.py onnx/runtime-inference.txt onnx/runtime-training.txt
	$(ONNX) runtime --out .runtime
	touch $@

# Trains onnx/phantom again from nothing (about a quarter of an hour on two idle cores).
train-phantom: build
	target/release/cdal train --config configs/train-phantom.toml

# Pins the Python packages anew after a change of requirements.in.
lock: .venv/ready
	$(VENV) -m pip install --quiet pip-tools
	.venv/bin/pip-compile --quiet --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host \
		--strip-extras --output-file onnx/requirements.txt onnx/requirements.in

clean:
	rm -rf target .venv .runtime demo runs
