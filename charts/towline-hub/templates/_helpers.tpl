{{/*
Names and small pieces that more than one template needs. Object names and the namespace are fixed: the hub's
certificate, its Secrets and what agents look for go by them (crates/api/src/names.rs).
*/}}
{{- define "towline-hub.namespace" -}}clusternet-system{{- end }}
{{- define "towline-hub.gatewayName" -}}clusternet-hub-gateway{{- end }}

{{/* The block `labels:`, or nothing. Takes a dict: root, and labels of the object's own. */}}
{{- define "towline-hub.labels" -}}
{{- $labels := dict -}}
{{- if eq .root.Values.renderFor "helm" -}}
{{- $labels = dict
      "app.kubernetes.io/name" "clusternet-hub"
      "app.kubernetes.io/instance" .root.Release.Name
      "app.kubernetes.io/version" (.root.Chart.AppVersion | toString)
      "app.kubernetes.io/part-of" "towline"
      "app.kubernetes.io/managed-by" .root.Release.Service
      "helm.sh/chart" (printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_")) -}}
{{- end -}}
{{- $labels = mergeOverwrite (dict) .root.Values.commonLabels $labels (default dict .labels) -}}
{{- with $labels }}labels:
{{ toYaml . | indent 2 }}
{{- end -}}
{{- end }}

{{/* Labels by which the Deployment, its Service and policies find the pods. Never changed: a Deployment's are immutable. */}}
{{- define "towline-hub.selector" -}}
app.kubernetes.io/name: clusternet-hub
{{- end }}

{{/* An image reference. Takes a dict: root and image (registry, repository, tag, digest). */}}
{{- define "towline-hub.imageOf" -}}
{{- $registry := default .image.registry .root.Values.global.imageRegistry -}}
{{- $repository := .image.repository -}}
{{- with $registry }}{{ $repository = printf "%s/%s" (trimSuffix "/" .) $repository }}{{ end -}}
{{- if .image.digest -}}
{{ printf "%s@%s" $repository .image.digest }}
{{- else -}}
{{ printf "%s:%s" $repository (default (.root.Chart.AppVersion | toString) .image.tag) }}
{{- end -}}
{{- end }}
{{- define "towline-hub.image" -}}
{{ include "towline-hub.imageOf" (dict "root" . "image" .Values.image) }}
{{- end }}

{{/* What invitations name: the hub's image, but for what agentImage says otherwise. A digest goes with its repository. */}}
{{- define "towline-hub.agentImage" -}}
{{- $own := .Values.agentImage -}}
{{- $image := dict
      "registry" (default .Values.image.registry $own.registry)
      "repository" (default .Values.image.repository $own.repository)
      "tag" (default .Values.image.tag $own.tag)
      "digest" $own.digest -}}
{{- if not (or $own.registry $own.repository $own.tag $own.digest) -}}
{{- $_ := set $image "digest" .Values.image.digest -}}
{{- end -}}
{{ include "towline-hub.imageOf" (dict "root" . "image" $image) }}
{{- end }}

{{/* Pull secrets of the chart and of all charts, as a list of names. */}}
{{- define "towline-hub.imagePullSecrets" -}}
{{- with concat (default list .Values.global.imagePullSecrets) .Values.imagePullSecrets | uniq }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* 90s, 15m, 24h or 7d as seconds. */}}
{{- define "towline-hub.seconds" -}}
{{- mul (regexFind "^[0-9]+" . | int) (get (dict "s" 1 "m" 60 "h" 3600 "d" 86400) (regexFind "[smhd]$" .)) -}}
{{- end }}

{{/* The pod's grace period: both phases of the hub's own shutdown, and 12 s for what is cut then and for the kubelet. */}}
{{- define "towline-hub.gracePeriod" -}}
{{- $needed := add (include "towline-hub.seconds" .Values.shutdown.delay) (include "towline-hub.seconds" .Values.shutdown.grace) -}}
{{- default (add $needed 12) .Values.terminationGracePeriodSeconds -}}
{{- end }}

{{/* An address with a port to listen on; IPv6 in brackets. Takes a dict: address, port. */}}
{{- define "towline-hub.listen" -}}
{{- $address := default "0.0.0.0" .address -}}
{{- if contains ":" $address }}[{{ $address }}]:{{ .port }}{{ else }}{{ $address }}:{{ .port }}{{ end -}}
{{- end }}

{{/* Host of an https:// address, without its port. */}}
{{- define "towline-hub.host" -}}
{{- regexReplaceAll ":[0-9]+$" (trimSuffix "/" (trimPrefix "https://" .)) "" -}}
{{- end }}

{{/* Names at which the gateway is reached, one a line: that of its address, and all below its domain. */}}
{{- define "towline-hub.gatewayHosts" -}}
{{- $hosts := list -}}
{{- with .Values.gateway.url }}{{ $hosts = append $hosts (include "towline-hub.host" .) }}{{ end -}}
{{- with .Values.gateway.domain }}{{ $hosts = append $hosts (printf "*.%s" .) }}{{ end -}}
{{- join "\n" $hosts -}}
{{- end }}

{{/* Something, if the gateway's certificate comes from a Secret; the hub makes one otherwise. */}}
{{- define "towline-hub.gatewayHasFiles" -}}
{{- with .Values.gateway.certificate }}{{ if or .existingSecret .certManager.enabled }}yes{{ end }}{{ end -}}
{{- end }}

{{/* The Secret with the gateway's certificate. Not clusternet-hub-gateway-tls: names with -tls are for what the hub makes itself. */}}
{{- define "towline-hub.gatewaySecret" -}}
{{- default "clusternet-hub-gateway-cert" .Values.gateway.certificate.existingSecret -}}
{{- end }}

{{- define "towline-hub.parentCAConfigMap" -}}
{{- default "clusternet-hub-parent-ca" .Values.parentCA.configMap -}}
{{- end }}

{{/* Security of any container here: what Pod Security `restricted` asks for, and no file to write to. */}}
{{- define "towline-hub.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
{{- define "towline-hub.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
