{{/*
What the schema cannot say: values that contradict each other, or that the hub cannot do yet. All at once, each with the
value's path, why, and what to do. The hub checks its own flags again when it starts.
*/}}
{{- define "towline-hub.check" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- if ne .Release.Namespace "clusternet-system" -}}
{{- $wrong = append $wrong (printf "the release is in namespace %q, and the hub's names are made for clusternet-system: install it with --namespace clusternet-system" .Release.Namespace) -}}
{{- end -}}
{{- if not $v.publicURL -}}
{{- $wrong = append $wrong "publicURL is missing: set it to the address at which agents reach the parent's kube-apiserver, like https://parent.example.com:6443; it is written into every invitation and never guessed" -}}
{{- end -}}
{{- if and $v.podDisruptionBudget.enabled (lt (int $v.replicas) 2) (eq (toString $v.podDisruptionBudget.maxUnavailable) "0") -}}
{{- $wrong = append $wrong "podDisruptionBudget.maxUnavailable is 0 with one replica: no node could ever be drained. Set podDisruptionBudget.enabled: false" -}}
{{- else if and $v.podDisruptionBudget.enabled (lt (int $v.replicas) 2) -}}
{{- $wrong = append $wrong "podDisruptionBudget.enabled is true with one replica: a budget protects nothing there, or blocks every drain of its node. Set podDisruptionBudget.enabled: false" -}}
{{- end -}}
{{- if and $v.podDisruptionBudget.enabled (semverCompare "<1.21.0-0" .Capabilities.KubeVersion.Version) -}}
{{- $wrong = append $wrong (printf "podDisruptionBudget.enabled needs policy/v1 of Kubernetes 1.21, and this is %s. Set it to false" .Capabilities.KubeVersion.Version) -}}
{{- end -}}

{{- if and $v.parentCA.pem $v.parentCA.configMap -}}
{{- $wrong = append $wrong "parentCA.pem and parentCA.configMap are both set: keep one of them" -}}
{{- end -}}
{{- with $v.parentCA.pem -}}
{{- if contains "PRIVATE KEY" . -}}
{{- $wrong = append $wrong "parentCA.pem holds a private key, and it goes into every invitation: give the certificates alone" -}}
{{- else if not (contains "-----BEGIN CERTIFICATE-----" .) -}}
{{- $wrong = append $wrong "parentCA.pem holds no certificate: it has to be PEM, with -----BEGIN CERTIFICATE-----" -}}
{{- end -}}
{{- end -}}

{{- $needed := add (include "towline-hub.seconds" $v.shutdown.delay) (include "towline-hub.seconds" $v.shutdown.grace) 5 -}}
{{- if lt (include "towline-hub.gracePeriod" . | int) (int $needed) -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds is %v, and the hub takes shutdown.delay and shutdown.grace to stop, and a few seconds: set it to %d or more, or leave it out" $v.terminationGracePeriodSeconds (int $needed)) -}}
{{- end -}}
{{- range list "delay" "grace" -}}
{{- if gt (include "towline-hub.seconds" (index $v.shutdown .) | int) 600 -}}
{{- $wrong = append $wrong (printf "shutdown.%s is %s: ten minutes are the most" . (index $v.shutdown .)) -}}
{{- end -}}
{{- end -}}
{{- if and $v.limits.maxInFlight $v.limits.maxInFlightPerUser (gt (int $v.limits.maxInFlightPerUser) (int $v.limits.maxInFlight)) -}}
{{- $wrong = append $wrong "limits.maxInFlightPerUser is above limits.maxInFlight: one user could use up the hub. Lower it" -}}
{{- end -}}

{{- $gateway := $v.gateway -}}
{{- if $gateway.enabled -}}
{{- $certificate := $gateway.certificate -}}
{{- if not (include "towline-hub.gatewayHasFiles" .) -}}
{{- if not (or $gateway.url $gateway.domain) -}}
{{- $wrong = append $wrong "gateway.enabled needs a name or a certificate: set gateway.url or gateway.domain, and the hub makes one for them; or name a Secret of type kubernetes.io/tls in clusternet-system with gateway.certificate.existingSecret" -}}
{{- end -}}
{{- if or $gateway.ca.fromCertificate $gateway.ca.configMap -}}
{{- $wrong = append $wrong "gateway.ca is set, and the hub makes the gateway's certificate and knows its CA: leave it out, or set gateway.certificate" -}}
{{- end -}}
{{- else if and $gateway.forAgents (not $gateway.ca.fromCertificate) (not $gateway.ca.configMap) -}}
{{- $wrong = append $wrong "gateway.forAgents needs the CA of the certificate, since agents believe no other: set gateway.ca.fromCertificate or gateway.ca.configMap" -}}
{{- end -}}
{{- if and $gateway.forAgents (not $gateway.url) -}}
{{- $wrong = append $wrong "gateway.forAgents needs gateway.url: it is what agents dial" -}}
{{- end -}}
{{- if and $certificate.existingSecret $certificate.certManager.enabled -}}
{{- $wrong = append $wrong "gateway.certificate.existingSecret and gateway.certificate.certManager.enabled are both set: keep one of them" -}}
{{- end -}}
{{- if has $certificate.existingSecret (list "clusternet-hub-tls" "clusternet-hub-gateway-tls") -}}
{{- $wrong = append $wrong (printf "gateway.certificate.existingSecret is %s, which the hub writes itself: use a Secret of another name" $certificate.existingSecret) -}}
{{- end -}}
{{- if and $certificate.certManager.enabled (not $certificate.certManager.issuerRef.name) -}}
{{- $wrong = append $wrong "gateway.certificate.certManager.issuerRef.name is missing: name the Issuer or ClusterIssuer" -}}
{{- end -}}
{{- if and $certificate.certManager.enabled (not $certificate.certManager.dnsNames) (not $gateway.url) (not $gateway.domain) -}}
{{- $wrong = append $wrong "gateway.certificate.certManager has no names to ask for: set gateway.url, gateway.domain or gateway.certificate.certManager.dnsNames" -}}
{{- end -}}
{{- if and $gateway.ca.fromCertificate $gateway.ca.configMap -}}
{{- $wrong = append $wrong "gateway.ca.fromCertificate and gateway.ca.configMap are both set: keep one of them" -}}
{{- end -}}
{{- range $name, $way := dict "ingress" $gateway.ingress "route" $gateway.route -}}
{{- if and $way.enabled (not $gateway.url) -}}
{{- $wrong = append $wrong (printf "gateway.%s.enabled needs gateway.url: its host is what is routed to the hub" $name) -}}
{{- else if and $way.enabled (regexMatch "^([0-9.]+$|\\[)" (include "towline-hub.host" $gateway.url)) -}}
{{- $wrong = append $wrong (printf "gateway.url is %s, and gateway.%s.enabled routes by a host's name, for which Kubernetes takes no address: give gateway.url a name, or reach the gateway by gateway.service.type" $gateway.url $name) -}}
{{- end -}}
{{- end -}}
{{- if and $gateway.ingress.enabled (eq $gateway.ingress.tls "reencrypt") (not $gateway.ingress.secretName) -}}
{{- $wrong = append $wrong "gateway.ingress.tls is reencrypt, so the ingress controller needs a certificate: set gateway.ingress.secretName" -}}
{{- end -}}
{{- if and $gateway.ingress.enabled (eq $gateway.ingress.tls "passthrough") $gateway.ingress.secretName -}}
{{- $wrong = append $wrong "gateway.ingress.secretName is set, and with gateway.ingress.tls: passthrough the hub's own certificate is served: leave it out" -}}
{{- end -}}
{{- if and $gateway.route.enabled (not $gateway.route.parentRefs) -}}
{{- $wrong = append $wrong "gateway.route.parentRefs is empty: name the Gateway that the route belongs to" -}}
{{- end -}}
{{- if and $gateway.service.nodePort (eq $gateway.service.type "ClusterIP") -}}
{{- $wrong = append $wrong "gateway.service.nodePort is set, and gateway.service.type is ClusterIP: set the type to NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $gateway.service.externalTrafficPolicy (eq $gateway.service.type "ClusterIP") -}}
{{- $wrong = append $wrong "gateway.service.externalTrafficPolicy is set, and gateway.service.type is ClusterIP: Kubernetes refuses that. Set the type to NodePort or LoadBalancer, or leave this out" -}}
{{- end -}}
{{- range list "loadBalancerClass" "loadBalancerSourceRanges" -}}
{{- if and (index $gateway.service .) (ne $gateway.service.type "LoadBalancer") -}}
{{- $wrong = append $wrong (printf "gateway.service.%s is set, and gateway.service.type is not LoadBalancer: set it, or leave this out" .) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- range $path, $set := dict "url" $gateway.url "domain" $gateway.domain "certificate.existingSecret" $gateway.certificate.existingSecret "certificate.certManager.enabled" $gateway.certificate.certManager.enabled "ingress.enabled" $gateway.ingress.enabled "route.enabled" $gateway.route.enabled "ca.configMap" $gateway.ca.configMap "ca.fromCertificate" $gateway.ca.fromCertificate "forAgents" $gateway.forAgents -}}
{{- if $set -}}
{{- $wrong = append $wrong (printf "gateway.%s is set, but gateway.enabled is not: set gateway.enabled: true, or leave it out" $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if hasPrefix "/" $v.audit.log -}}
{{- $mounted := false -}}
{{- range $v.extraVolumeMounts -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $v.audit.log }}{{ $mounted = true }}{{ end -}}
{{- end -}}
{{- if not $mounted -}}
{{- $wrong = append $wrong (printf "audit.log is %s, and the hub's file system is read-only: mount a volume there with extraVolumes and extraVolumeMounts, or set audit.log: \"-\"" $v.audit.log) -}}
{{- end -}}
{{- end -}}

{{- range $v.extraVolumes -}}
{{- if has .name (list "config" "gateway" "gateway-ca" "parent-ca") -}}
{{- $wrong = append $wrong (printf "extraVolumes has a volume %s, which is a name of the chart's own: give it another name" .name) -}}
{{- end -}}
{{- end -}}

{{- $names := list -}}
{{- range $v.extraEnv -}}
{{- if hasPrefix "TOWLINE_" .name -}}
{{- $wrong = append $wrong (printf "extraEnv sets %s: what the hub reads has a value of the chart, see `helm show values`" .name) -}}
{{- end -}}
{{- if has .name $names -}}
{{- $wrong = append $wrong (printf "extraEnv sets %s twice: keep one of them" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $flags := dict
      "config" "limits and log (they make the file)" "listen" "bindAddress" "gateway-listen" "gateway.enabled" "gateway-cert-file" "gateway.certificate" "gateway-key-file" "gateway.certificate"
      "gateway-url" "gateway.url" "gateway-ca-file" "gateway.ca" "gateway-domain" "gateway.domain" "max-credential-ttl" "maxCredentialTTL"
      "public-url" "publicURL" "intranet-url" "intranetURL" "parent-ca-file" "parentCA" "agent-image" "agentImage"
      "map-service-accounts" "mapServiceAccounts" "agents-use-gateway" "gateway.forAgents" "max-invitation-ttl" "maxInvitationTTL" "shutdown-delay" "shutdown.delay"
      "shutdown-grace" "shutdown.grace" "audit-log" "audit.log" "tracing-endpoint" "tracing.endpoint" "tracing-sampling-rate-per-million" "tracing.samplingRatePerMillion" "log-format" "log.format" "log-filter" "log.filter"
      "max-in-flight" "limits.maxInFlight" "max-in-flight-per-user" "limits.maxInFlightPerUser" "max-in-flight-per-cluster" "limits.maxInFlightPerCluster"
      "max-rate-per-user" "limits.maxRatePerUser" "max-rate-per-cluster" "limits.maxRatePerCluster" "max-header-bytes" "limits.maxHeaderBytes"
      "max-header-lines" "limits.maxHeaderLines" "request-head-timeout" "limits.requestHeadTimeout" "answer-timeout" "limits.answerTimeout"
      "stream-idle-timeout" "limits.streamIdleTimeout" "recheck-interval" "limits.recheckInterval" "max-tunnel-age" "limits.maxTunnelAge"
      "peer-listen" "replicas" "peer-address" "replicas" -}}
{{- range $v.extraArgs -}}
{{- $flag := regexReplaceAll "=.*" (trimPrefix "--" .) "" -}}
{{- if and (eq $flag "hub-id") (gt (int $v.replicas) 1) -}}
{{- $wrong = append $wrong (printf "extraArgs sets --hub-id with %d replicas: they find each other by their names, and all would have one. Leave it away; it is the pod's name then" (int $v.replicas)) -}}
{{- end -}}
{{- with get $flags $flag -}}
{{- $wrong = append $wrong (printf "extraArgs sets --%s, which wins over the value that the rest of the chart goes by: set %s instead" $flag .) -}}
{{- end -}}
{{- end -}}

{{- if $v.metrics.serviceMonitor.enabled -}}
{{- if not (and $gateway.enabled $gateway.url) -}}
{{- $wrong = append $wrong "metrics.serviceMonitor.enabled needs gateway.enabled and gateway.url: a Prometheus has a token, and the gateway is where tokens are taken" -}}
{{- end -}}
{{- if and (include "towline-hub.gatewayHasFiles" .) (not $gateway.ca.fromCertificate) (not $gateway.ca.configMap) (not $v.metrics.serviceMonitor.systemCAs) -}}
{{- $wrong = append $wrong "metrics.serviceMonitor needs the CA of the gateway's certificate: set gateway.ca.fromCertificate or gateway.ca.configMap, or metrics.serviceMonitor.systemCAs if Prometheus trusts it anyway" -}}
{{- end -}}
{{- end -}}

{{- if $wrong -}}
{{- fail (printf "\n\ntowline-hub cannot be installed with these values:\n  - %s\n" (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end }}

{{/* What works, but probably not as it was meant; NOTES.txt shows it. */}}
{{- define "towline-hub.warnings" -}}
{{- $v := .Values -}}
{{- $host := include "towline-hub.host" $v.publicURL -}}
{{- if regexMatch "^(localhost|127\\.|\\[::1\\])|\\.(svc|local|localhost)(\\.|$)|^kubernetes(\\.|$)" $host }}
- publicURL is {{ $v.publicURL }}: agents in other clusters do not reach that. It has to be an address of the parent's
  kube-apiserver that they can dial, and its certificate has to name it.
{{- else if and (regexMatch "^(10\\.|192\\.168\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.)" $host) (not $v.intranetURL) }}
- publicURL is {{ $v.publicURL }}, a private address: good only for agents in your own networks. If others shall join,
  set publicURL to an address that they reach, and this one as intranetURL.
{{- end }}
{{- $namespace := lookup "v1" "Namespace" "" "clusternet-system" }}
{{- if and $namespace (ne (dig "metadata" "labels" "pod-security.kubernetes.io/enforce" "" $namespace) "restricted") }}
- The namespace does not enforce the Pod Security profile that this chart fits:
    kubectl label namespace clusternet-system pod-security.kubernetes.io/enforce=restricted
{{- end }}
{{- if and (not $v.image.digest) (eq $v.image.tag "latest") }}
- image.tag is latest: nobody knows which version that is, and a restart may change it. Name a version or a digest.
{{- end }}
{{- if eq $v.audit.log "off" }}
- audit.log is off: nobody can find out who did what in which cluster.
{{- end }}
{{- if (default dict $v.resources.limits).cpu }}
- resources.limits.cpu slows down everybody's requests when it is reached; leave it out unless you have to.
{{- end }}
{{- if $v.gateway.enabled }}
{{- if not $v.gateway.url }}
- gateway.url is not set: the gateway works, but the hub cannot issue kubeconfigs for it.
{{- end }}
{{- if and (eq $v.gateway.service.type "ClusterIP") (not $v.gateway.ingress.enabled) (not $v.gateway.route.enabled) }}
- The gateway can be reached inside the parent only: set gateway.service.type, gateway.ingress or gateway.route.
{{- end }}
{{- if and $v.gateway.ingress.enabled (eq $v.gateway.ingress.tls "passthrough") (contains "nginx" $v.gateway.ingress.className) (ne (toString (get $v.gateway.ingress.annotations "nginx.ingress.kubernetes.io/ssl-passthrough")) "true") }}
- gateway.ingress.tls is passthrough, but the annotation nginx.ingress.kubernetes.io/ssl-passthrough: "true" is missing:
  ingress-nginx would end TLS with its own certificate. It also needs its flag --enable-ssl-passthrough.
{{- end }}
{{- if and $v.gateway.ingress.enabled (eq $v.gateway.ingress.tls "reencrypt") (contains "nginx" $v.gateway.ingress.className) (not (and (eq (toString (get $v.gateway.ingress.annotations "nginx.ingress.kubernetes.io/backend-protocol")) "HTTPS") (eq (toString (get $v.gateway.ingress.annotations "nginx.ingress.kubernetes.io/proxy-ssl-verify")) "on"))) }}
- gateway.ingress.tls is reencrypt, but ingress-nginx verifies no backend unless told to: set the annotations
  backend-protocol: HTTPS, proxy-ssl-verify: "on" and proxy-ssl-secret (docs/install.md, "Ingress").
{{- end }}
{{- if and $v.gateway.certificate.existingSecret $namespace (not (lookup "v1" "Secret" "clusternet-system" $v.gateway.certificate.existingSecret)) }}
- Secret clusternet-system/{{ $v.gateway.certificate.existingSecret }} is not there: the hub's pod waits for it.
{{- end }}
{{- end }}
{{- end }}
