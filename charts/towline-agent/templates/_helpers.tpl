{{/*
Names and small pieces that more than one template needs. Object names and the namespace are fixed: the agent looks for
its Secrets, its policy and the account that impersonates by them (crates/api/src/names.rs).
*/}}

{{/* The block `labels:`. Takes a dict: root, and labels of the object's own. */}}
{{- define "towline-agent.labels" -}}
{{- $labels := dict "clusternet.io/created-by" "clusternet-hub" -}}
{{- if eq .root.Values.renderFor "helm" -}}
{{- $labels = dict
      "app.kubernetes.io/name" "clusternet-agent"
      "app.kubernetes.io/instance" .root.Release.Name
      "app.kubernetes.io/version" (.root.Chart.AppVersion | toString)
      "app.kubernetes.io/part-of" "towline"
      "app.kubernetes.io/managed-by" .root.Release.Service
      "helm.sh/chart" (printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_")) -}}
{{- end -}}
labels:
{{ mergeOverwrite (dict) .root.Values.commonLabels $labels (default dict .labels) | toYaml | indent 2 }}
{{- end }}

{{/* Labels by which the Deployment and policies find the pod. Never changed: a Deployment's are immutable. */}}
{{- define "towline-agent.selector" -}}
app.kubernetes.io/name: clusternet-agent
{{- end }}

{{- define "towline-agent.image" -}}
{{- $registry := default .Values.image.registry .Values.global.imageRegistry -}}
{{- $repository := .Values.image.repository -}}
{{- with $registry }}{{ $repository = printf "%s/%s" (trimSuffix "/" .) $repository }}{{ end -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" $repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" $repository (default (.Chart.AppVersion | toString) .Values.image.tag) }}
{{- end -}}
{{- end }}

{{/* Pull secrets of the chart and of all charts, as a list of names. */}}
{{- define "towline-agent.imagePullSecrets" -}}
{{- with concat (default list .Values.global.imagePullSecrets) .Values.imagePullSecrets | uniq }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* The Secret with what the invitation gave. */}}
{{- define "towline-agent.registrationSecret" -}}
{{- default "clusternet-agent-cluster-registration" .Values.registration.existingSecret -}}
{{- end }}

{{/* The owner's policy as the agent reads it. */}}
{{- define "towline-agent.policy" -}}
{{ mergeOverwrite (dict "apiVersion" "access.towline.io/v1alpha1" "kind" "AgentPolicy") .Values.policy | toYaml }}
{{- end }}

{{/* Security of any container here: what Pod Security `restricted` asks for, and no file to write to. */}}
{{- define "towline-agent.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
{{- define "towline-agent.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* An address with a port to listen on; IPv6 in brackets. */}}
{{- define "towline-agent.listen" -}}
{{- if contains ":" .Values.bindAddress }}[{{ .Values.bindAddress }}]:8080{{ else }}{{ .Values.bindAddress }}:8080{{ end -}}
{{- end }}

{{/* The agent's environment: one variable for each value that differs from what it does by itself (crates/agent/src/config.rs). */}}
{{- define "towline-agent.environment" -}}
{{- $env := list
      (list "TOWLINE_KUBE_APISERVER" .Values.kubeAPIServer)
      (list "TOWLINE_TUNNELS" .Values.tunnels)
      (list "TOWLINE_THREADS" .Values.threads)
      (list "TOWLINE_TRACING_ENDPOINT" .Values.tracing.endpoint)
      (list "TOWLINE_TRACING_SAMPLING_RATE_PER_MILLION" .Values.tracing.samplingRatePerMillion)
      (list "TOWLINE_LOG_FORMAT" .Values.log.format)
      (list "TOWLINE_LOG_FILTER" .Values.log.filter)
      (list "HTTPS_PROXY" .Values.proxy.url)
      (list "NO_PROXY" .Values.proxy.noProxy) -}}
{{- if .Values.bindAddress -}}
{{- $env = append $env (list "TOWLINE_ADMIN_LISTEN" (include "towline-agent.listen" .)) -}}
{{- end -}}
{{- range $env }}
{{- $value := index . 1 }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- name: {{ index . 0 }}
  value: {{ kindIs "float64" $value | ternary (printf "%.0f" (float64 $value)) (toString $value) | quote }}
{{- end }}
{{- end }}
{{- with .Values.proxy.existingSecret }}
{{- if .name }}
- name: HTTPS_PROXY
  valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}, optional: false}}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
