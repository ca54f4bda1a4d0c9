#!/usr/bin/env bash
# The charts and what is rendered from them.
#   hack/charts.sh render    deploy/hub.yaml anew from charts/towline-hub, and the chart's CRDs from deploy/crds.yaml
#   hack/charts.sh check     helm lint --strict with the oldest and newest Helm at hand; deploy/hub.yaml is what is rendered;
#                            the alerts fire when they have to and not otherwise (promtool)
#   hack/charts.sh images    the images of an installation, one a line (to fill a registry behind an air gap)
# Values good and bad are tried by the test `charts` (tests/charts).
set -euo pipefail

cd "$(dirname "$0")/.."
hub=charts/towline-hub
agent=charts/towline-agent

helm() { # VERSION, as client-binaries.sh calls it
  hack/client-binaries.sh "helm-$1" | cut -d ' ' -f 2
}

rendered_hub() {
  cat <<'HEAD'
# The hub, for the parent cluster. Apply deploy/crds.yaml first, then this; see deploy/README.md.
# Two values are yours: TOWLINE_PUBLIC_URL (the address at which agents reach the parent's API server) and the image.
# Rendered from charts/towline-hub by `make manifests`: change the chart, not this file.
HEAD
  "$(helm 4)" template towline-hub "$hub" --namespace clusternet-system --kube-version 1.20.0 \
    --values tests/charts/hub-manifest.yaml | grep -v '^# Source: '
}

check_alerts() {
  local rules=$hub/files/alerts.yaml tests=tests/charts/alerts.yaml promtool alert
  if ! promtool=$(hack/promtool.sh); then
    echo "!!! LEFT OUT: the alerts were not tried, since there is no promtool (the reason stands above)" >&2
    return
  fi
  echo "==> promtool: $rules" >&2
  "$promtool" check rules "$rules" >/dev/null
  "$promtool" test rules "$tests" >/dev/null
  for alert in $(sed -n 's/^  - alert: //p' "$rules"); do
    grep -A1 "alertname: $alert\$" "$tests" | grep -q exp_alerts || { echo "no test in $tests makes $alert fire" >&2; exit 1; }
  done
}

case ${1:-} in
render)
  cp deploy/crds.yaml "$hub/files/crds.json"
  rendered_hub > deploy/hub.yaml.new
  mv deploy/hub.yaml.new deploy/hub.yaml
  ;;
check)
  for version in 3.9 4; do
    helm=$(helm "$version")
    echo "==> helm lint --strict ($version)" >&2
    "$helm" lint --quiet --strict "$hub" --namespace clusternet-system --set publicURL=https://parent.example.com
    "$helm" lint --quiet --strict "$agent" --namespace clusternet-system --set registration.existingSecret=invitation
  done
  echo "==> deploy/ is what the charts and types give" >&2
  cmp deploy/crds.yaml "$hub/files/crds.json" || { echo "$hub/files/crds.json is not deploy/crds.yaml: make manifests" >&2; exit 1; }
  rendered_hub | diff deploy/hub.yaml - || { echo "deploy/hub.yaml is not what $hub gives: make manifests" >&2; exit 1; }
  check_alerts
  ;;
images)
  helm=$(helm 4)
  { "$helm" template towline-hub "$hub" --namespace clusternet-system --set publicURL=https://parent.example.com
    "$helm" template towline-agent "$agent" --namespace clusternet-system --set registration.existingSecret=invitation
  } | sed -n 's/^ *\(- \)\{0,1\}image: *//p' | sort -u
  ;;
*)
  sed -n '2,7p' "$0" >&2
  exit 64
  ;;
esac
