{{/* What the hub's pod is made of besides its container: volumes, mounts, and how replicas are spread. */}}
{{- define "towline-hub.volumes" -}}
{{- if or .Values.parentCA.pem .Values.parentCA.configMap }}
- name: parent-ca
  configMap: {name: {{ include "towline-hub.parentCAConfigMap" . }}, optional: false}
{{- end }}
{{- if and .Values.gateway.enabled (include "towline-hub.gatewayHasFiles" .) }}
# The whole Secret and no subPath: a renewed certificate reaches the file, and the hub reads it again every 30 s. Mode 0440.
- name: gateway
  secret: {secretName: {{ include "towline-hub.gatewaySecret" . }}, optional: false, defaultMode: 288}
{{- with .Values.gateway.ca.configMap }}
- name: gateway-ca
  configMap: {name: {{ . }}, optional: false}
{{- end }}
{{- end }}
# No subPath: a changed file reaches the hub, which reads it again every 5 s.
- name: config
  configMap: {name: clusternet-hub-config, optional: false}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "towline-hub.mounts" -}}
{{- if or .Values.parentCA.pem .Values.parentCA.configMap }}
- {name: parent-ca, mountPath: /etc/towline/parent-ca, readOnly: true}
{{- end }}
{{- if and .Values.gateway.enabled (include "towline-hub.gatewayHasFiles" .) }}
- {name: gateway, mountPath: /etc/towline/gateway, readOnly: true}
{{- if .Values.gateway.ca.configMap }}
- {name: gateway-ca, mountPath: /etc/towline/gateway-ca, readOnly: true}
{{- end }}
{{- end }}
- {name: config, mountPath: /etc/towline/config, readOnly: true}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The values' own constraints, with the hub's labels where they name none; else, for several replicas, nodes and zones. */}}
{{- define "towline-hub.spread" -}}
{{- $constraints := .Values.topologySpreadConstraints -}}
{{- if and (not $constraints) (gt (int .Values.replicas) 1) -}}
{{- $constraints = list
      (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway")
      (dict "maxSkew" 1 "topologyKey" "topology.kubernetes.io/zone" "whenUnsatisfiable" "ScheduleAnyway") -}}
{{- end -}}
{{- range $constraints }}
{{ list (mergeOverwrite (dict "labelSelector" (dict "matchLabels" (include "towline-hub.selector" $ | fromYaml))) .) | toYaml }}
{{- end }}
{{- end }}
