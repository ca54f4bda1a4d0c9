{{/*
The hub's environment: one variable for each value that differs from what the hub does by itself
(crates/hub/src/config.rs, crates/hub/src/limits.rs). A list of name and value, as YAML. What the hub can change while it
runs is in its file instead, below.
*/}}
{{- define "towline-hub.environment" -}}
{{- $env := list
      (list "PUBLIC_URL" .Values.publicURL)
      (list "INTRANET_URL" .Values.intranetURL)
      (list "AGENT_IMAGE" (include "towline-hub.agentImage" .))
      (list "SHUTDOWN_DELAY" .Values.shutdown.delay)
      (list "SHUTDOWN_GRACE" .Values.shutdown.grace)
      (list "MAX_INVITATION_TTL" .Values.maxInvitationTTL)
      (list "MAX_CREDENTIAL_TTL" .Values.maxCredentialTTL)
      (list "AUDIT_LOG" (eq .Values.audit.log "-" | ternary "" .Values.audit.log))
      (list "LOG_FORMAT" .Values.log.format)
      (list "TRACING_ENDPOINT" .Values.tracing.endpoint)
      (list "TRACING_SAMPLING_RATE_PER_MILLION" .Values.tracing.samplingRatePerMillion)
      (list "MAX_IN_FLIGHT" .Values.limits.maxInFlight) -}}
{{- if .Values.bindAddress -}}
{{- $env = append $env (list "LISTEN" (include "towline-hub.listen" (dict "address" .Values.bindAddress "port" 8443))) -}}
{{- end -}}
{{- if gt (int .Values.replicas) 1 -}}
{{- $env = append $env (list "PEER_LISTEN" (include "towline-hub.listen" (dict "address" .Values.bindAddress "port" 8445))) -}}
{{- end -}}
{{- if .Values.mapServiceAccounts -}}
{{- $env = append $env (list "MAP_SERVICE_ACCOUNTS" "true") -}}
{{- end -}}
{{- if or .Values.parentCA.pem .Values.parentCA.configMap -}}
{{- $env = append $env (list "PARENT_CA_FILE" (printf "/etc/towline/parent-ca/%s" .Values.parentCA.key)) -}}
{{- end -}}
{{- with .Values.gateway -}}
{{- if .enabled -}}
{{- $listen := include "towline-hub.listen" (dict "address" $.Values.bindAddress "port" 8444) -}}
{{- $env = concat $env (list
      (list "GATEWAY_LISTEN" $listen)
      (list "GATEWAY_URL" .url)
      (list "GATEWAY_DOMAIN" .domain)) -}}
{{- if .forAgents -}}
{{- $env = append $env (list "AGENTS_USE_GATEWAY" "true") -}}
{{- end -}}
{{- if include "towline-hub.gatewayHasFiles" $ -}}
{{- $env = concat $env (list
      (list "GATEWAY_CERT_FILE" "/etc/towline/gateway/tls.crt")
      (list "GATEWAY_KEY_FILE" "/etc/towline/gateway/tls.key")) -}}
{{- end -}}
{{- if .ca.fromCertificate -}}
{{- $env = append $env (list "GATEWAY_CA_FILE" "/etc/towline/gateway/ca.crt") -}}
{{- else if .ca.configMap -}}
{{- $env = append $env (list "GATEWAY_CA_FILE" (printf "/etc/towline/gateway-ca/%s" .ca.key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $env = append $env (list "CONFIG" "/etc/towline/config/config.yaml") -}}
{{- if gt (int .Values.replicas) 1 }}
# Where the other replicas find this one; its port is that of TOWLINE_PEER_LISTEN.
- name: "TOWLINE_PEER_ADDRESS"
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
{{- end }}
{{- range $env }}
{{- $value := index . 1 }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- name: TOWLINE_{{ index . 0 }}
  value: {{ kindIs "float64" $value | ternary (printf "%.0f" (float64 $value)) (toString $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Keys of the hub's file: values that it takes without a restart (`LIVE` in crates/hub/src/config.rs). */}}
{{- define "towline-hub.configuration" -}}
{{- $keys := list
      (list "max-in-flight-per-user" .Values.limits.maxInFlightPerUser)
      (list "max-in-flight-per-cluster" .Values.limits.maxInFlightPerCluster)
      (list "max-rate-per-user" .Values.limits.maxRatePerUser)
      (list "max-rate-per-cluster" .Values.limits.maxRatePerCluster)
      (list "max-header-bytes" .Values.limits.maxHeaderBytes)
      (list "max-header-lines" .Values.limits.maxHeaderLines)
      (list "request-head-timeout" .Values.limits.requestHeadTimeout)
      (list "answer-timeout" .Values.limits.answerTimeout)
      (list "stream-idle-timeout" .Values.limits.streamIdleTimeout)
      (list "recheck-interval" .Values.limits.recheckInterval)
      (list "max-tunnel-age" .Values.limits.maxTunnelAge)
      (list "log-filter" .Values.log.filter) -}}
# What stands here is taken within a minute or so, without a restart. All keys: docs/configuration.md
{{- range $keys }}
{{- $value := index . 1 }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
{{ index . 0 }}: {{ kindIs "float64" $value | ternary (printf "%.0f" (float64 $value)) (toString $value) | quote }}
{{- end }}
{{- end }}
{{- end }}
