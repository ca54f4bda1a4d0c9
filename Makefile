# The doors of this project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

TARGET := $(shell uname -m)-unknown-linux-gnu
STATIC_ENV := CARGO_TARGET_$(shell echo $(TARGET) | tr 'a-z-' 'A-Z_')_RUSTFLAGS='-C target-feature=+crt-static'
STATIC_DIR := target/$(TARGET)/release
IMAGE := target/image/towline.oci.tar
IMAGE_NAME := towline:$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
REVISION := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

.PHONY: help
help: ## list the doors
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | column -t -s $$'\t'

.PHONY: demo
demo: prerequisites kubernetes image ## two real clusters, one behind NAT, joined; kubectl through the hub (ARGS=--once ends by itself)
	$(STATIC_DIR)/demo $(ARGS)

.PHONY: test
test: prerequisites kubernetes test-fast charts image ## everything, on a real Kubernetes
	cargo test --locked -p tests --test kubernetes --test e2e --test trust --test replicas
	TOWLINE_CLIENTS=few cargo test --locked -p tests --test clients
	$(STATIC_DIR)/bench --smoke

.PHONY: test-fast
test-fast: ## unit, property and in-process tests, and the fuzz corpora; no Kubernetes
	cargo test --locked --workspace --exclude tests
	cargo test --locked -p tests --lib

.PHONY: test-helm
test-helm: prerequisites kubernetes image ## the life of a Helm release, with a node in the parent: install, upgrade and rollback under traffic, removal
	cargo test --locked -p tests --test helm

REV := HEAD~1
.PHONY: previous
previous: binaries ## charts and image of the commit REV=HEAD~1, as AS=0.0.9 if given, for TOWLINE_PREVIOUS=target/previous make test-helm
	hack/previous.sh $(REV) target/previous $(AS)

.PHONY: test-clients
test-clients: prerequisites kubernetes image ## kubectl 1.20 to 1.37, Helm, client libraries, what TKEStack asks; tables in target/compatibility.md
	cargo test --locked -p tests --test clients

T := 60
.PHONY: fuzz
fuzz: prerequisites ## fuzz each target for T seconds (T=60, TARGETS="path yaml"); see docs/fuzzing.md
	hack/fuzz.sh $(T) $(TARGETS)

.PHONY: soak
soak: prerequisites ## tunnels on bad links, one after the other, for T (T=10m); prints the slope of memory; see docs/faults.md
	TOWLINE_SOAK=$(T) cargo test --locked -p tunnel-proto --test it -- --ignored --nocapture soak

.PHONY: lint
lint: ## rustfmt, clippy with warnings denied, cargo deny, shell syntax, workflow files
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	hack/cargo-deny.sh
	bash -n hack/*.sh .ci/run
	hack/workflows.sh

.PHONY: bench
bench: prerequisites kubernetes image ## latency, throughput, CPU and memory against a direct connection (ARGS=--smoke is short)
	$(STATIC_DIR)/bench $(ARGS)

.PHONY: storm
storm: prerequisites kubernetes image ## a hub is killed, and N=2000 agents come back at once; how long it takes
	$(STATIC_DIR)/storm $(N)

.PHONY: image
image: binaries ## one OCI image with hub, agent and command line, without a container engine
	$(STATIC_DIR)/image $(STATIC_DIR) $(IMAGE) $(IMAGE_NAME) $(REVISION)

.PHONY: sbom
sbom: prerequisites ## a CycloneDX bill of materials for each program of the image, in target/sbom
	hack/sbom.sh $(TARGET)

.PHONY: release
release: image ## what a release consists of, with checksums, in target/publish; see docs/release.md
	hack/release.sh $(STATIC_DIR) $(IMAGE)

.PHONY: binaries
binaries: prerequisites ## static binaries of hub, agent and command line, and of what demo, image and bench run
	$(STATIC_ENV) cargo build --locked --release --target $(TARGET) -p hub -p agent -p cli -p tests --bins

.PHONY: manifests
manifests: prerequisites ## write deploy/crds.yaml anew from the types, and deploy/hub.yaml from its chart
	cargo run --quiet --locked -p api --bin crdgen > deploy/crds.yaml
	hack/charts.sh render

.PHONY: charts
charts: prerequisites ## lint the charts, render them with values good and bad, compare deploy/ with them
	hack/charts.sh check
	cargo test --locked -p tests --test charts

.PHONY: prerequisites
prerequisites:
	hack/install-prerequisites.sh

.PHONY: kubernetes
kubernetes: prerequisites ## find or build kube-apiserver, controller manager, kubelet (about 15 minutes, once)
	hack/kubernetes-binaries.sh >/dev/null

.PHONY: clean
clean: ## remove what was built here; keeps the Kubernetes cache
	cargo clean
