{{/*
What the schema cannot say: values that contradict each other, or that would open more than was meant. All at once, each with
the value's path, why, and what to do.
*/}}
{{- define "towline-agent.check" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- if ne .Release.Namespace "clusternet-system" -}}
{{- $wrong = append $wrong (printf "the release is in namespace %q, and the agent's names are made for clusternet-system: install it with --namespace clusternet-system" .Release.Namespace) -}}
{{- end -}}

{{- $registration := $v.registration -}}
{{- $missing := list -}}
{{- $both := list -}}
{{- range list "parentURL" "ca" "clusterName" "invitation" "invitationSecret" "regToken" "expires" -}}
{{- $given := index $registration . -}}
{{- if and $registration.existingSecret $given (ne . "invitation") -}}
{{- $both = append $both (printf "registration.%s" .) -}}
{{- else if and (not $registration.existingSecret) (not $given) -}}
{{- $missing = append $missing (printf "registration.%s" .) -}}
{{- end -}}
{{- end -}}
{{- with $missing -}}
{{- $wrong = append $wrong (printf "missing: %s. Take them from the agent.yaml of an invitation (kubectl towline register NAME), or put its Secret into clusternet-system and name it with registration.existingSecret" (join ", " .)) -}}
{{- end -}}
{{- with $both -}}
{{- $wrong = append $wrong (printf "set beside registration.existingSecret: %s. What is in the Secret holds, so leave them out" (join ", " .)) -}}
{{- end -}}
{{- range list "gatewayURL" "gatewayCA" -}}
{{- if and $registration.existingSecret (index $registration .) -}}
{{- $wrong = append $wrong (printf "set beside registration.existingSecret: registration.%s. What is in the Secret holds, so leave it out" .) -}}
{{- end -}}
{{- end -}}
{{- if ne (empty $registration.gatewayURL) (empty $registration.gatewayCA) -}}
{{- $wrong = append $wrong "registration.gatewayURL and registration.gatewayCA belong together: set both as the invitation has them, or neither" -}}
{{- end -}}
{{- range $name := list "ca" "gatewayCA" -}}
{{- with index $registration $name -}}
{{- if contains "PRIVATE KEY" . -}}
{{- $wrong = append $wrong (printf "registration.%s holds a private key: give the certificates alone" $name) -}}
{{- else if not (contains "-----BEGIN CERTIFICATE-----" .) -}}
{{- $wrong = append $wrong (printf "registration.%s holds no certificate: it has to be PEM, with -----BEGIN CERTIFICATE----- (in agent.yaml it stands in base64)" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $registration.existingSecret "parent-cluster" -}}
{{- $wrong = append $wrong "registration.existingSecret is parent-cluster, where the agent keeps its key and credential: use a Secret of its own" -}}
{{- end -}}

{{- if and $v.policy (not $v.policy.preset) -}}
{{- $wrong = append $wrong "policy.preset is missing: set it to view, no-exec, edit or admin" -}}
{{- end -}}
{{- with $v.impersonation -}}
{{- range .groups -}}
{{- if or (hasPrefix "system:" .) (hasPrefix "kubeadm:" .) -}}
{{- $wrong = append $wrong (printf "impersonation.groups has %s, a group of Kubernetes itself: the agent serves nobody while it may become that. Leave it out" .) -}}
{{- else if hasPrefix "clusternet:" . -}}
{{- $wrong = append $wrong (printf "impersonation.groups has %s: the hub's roles are always there. Leave it out; what they mean stands under roles" .) -}}
{{- end -}}
{{- end -}}
{{- range .users -}}
{{- if or (hasPrefix "system:" .) (hasPrefix "kubeadm:" .) -}}
{{- $wrong = append $wrong (printf "impersonation.users has %s, a user of Kubernetes itself: the agent serves nobody while it may become that. Leave it out" .) -}}
{{- end -}}
{{- end -}}
{{- if and .constrained.enabled (semverCompare "<1.36.0-0" $.Capabilities.KubeVersion.Version) -}}
{{- $wrong = append $wrong (printf "impersonation.constrained.enabled needs Kubernetes 1.36, and this is %s, where these verbs mean nothing and every request would be refused. Set it to false" $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}

{{- if contains "@" $v.proxy.url -}}
{{- $wrong = append $wrong "proxy.url has a user or a password, and values are no place for them: put the whole URL into a Secret in clusternet-system and name it with proxy.existingSecret.name" -}}
{{- end -}}
{{- if and $v.proxy.url $v.proxy.existingSecret.name -}}
{{- $wrong = append $wrong "proxy.url and proxy.existingSecret.name are both set: keep one of them" -}}
{{- end -}}
{{- with $v.terminationGracePeriodSeconds -}}
{{- if lt (int .) 25 -}}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds is %v, and the agent takes 20 s to let go of open streams: set it to 25 or more, or leave it out" .) -}}
{{- end -}}
{{- end -}}

{{- $names := list -}}
{{- range $v.extraEnv -}}
{{- if hasPrefix "TOWLINE_" .name -}}
{{- $wrong = append $wrong (printf "extraEnv sets %s: what the agent reads has a value of the chart, see `helm show values`" .name) -}}
{{- else if has (upper .name) (list "HTTPS_PROXY" "NO_PROXY") -}}
{{- $wrong = append $wrong (printf "extraEnv sets %s: use proxy.url or proxy.existingSecret, and proxy.noProxy" .name) -}}
{{- else if has .name (list "KUBERNETES_SERVICE_HOST" "KUBERNETES_SERVICE_PORT" "KUBERNETES_SERVICE_PORT_HTTPS") -}}
{{- $wrong = append $wrong (printf "extraEnv sets %s: use kubeAPIServer" .name) -}}
{{- end -}}
{{- if has .name $names -}}
{{- $wrong = append $wrong (printf "extraEnv sets %s twice: keep one of them" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $flags := dict "admin-listen" "bindAddress" "kube-apiserver" "kubeAPIServer" "tunnels" "tunnels" "threads" "threads" "tracing-endpoint" "tracing.endpoint" "tracing-sampling-rate-per-million" "tracing.samplingRatePerMillion" "log-format" "log.format" "log-filter" "log.filter" "registration-dir" "registration" -}}
{{- range $v.extraArgs -}}
{{- $flag := regexReplaceAll "=.*" (trimPrefix "--" .) "" -}}
{{- with get $flags $flag -}}
{{- $wrong = append $wrong (printf "extraArgs sets --%s, which wins over the value that the rest of the chart goes by: set %s instead" $flag .) -}}
{{- end -}}
{{- end -}}

{{- if $wrong -}}
{{- fail (printf "\n\ntowline-agent cannot be installed with these values:\n  - %s\n" (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end }}

{{/* What works, but probably not as it was meant; NOTES.txt shows it. */}}
{{- define "towline-agent.warnings" -}}
{{- $v := .Values -}}
{{- $namespace := lookup "v1" "Namespace" "" "clusternet-system" }}
{{- if and $namespace (ne (dig "metadata" "labels" "pod-security.kubernetes.io/enforce" "" $namespace) "restricted") }}
- The namespace does not enforce the Pod Security profile that this chart fits:
    kubectl label namespace clusternet-system pod-security.kubernetes.io/enforce=restricted
{{- end }}
{{- if and $v.registration.existingSecret $namespace (not (lookup "v1" "Secret" "clusternet-system" $v.registration.existingSecret)) }}
- Secret clusternet-system/{{ $v.registration.existingSecret }} is not there: the agent's pod waits for it.
{{- end }}
{{- if not $v.registration.existingSecret }}
- The invitation stands in the values, and so in Helm's record of this release. It is good for one cluster, until
  {{ $v.registration.expires }}; with registration.existingSecret it would not be there.
{{- end }}
{{- if not $v.policy }}
- policy is empty. If no ConfigMap clusternet-agent-policy is there, preset edit holds: whoever the hub lets in may do what
  your RBAC gives them, but for what would hand over the cluster. Set policy.preset to say more or less.
{{- else if eq $v.policy.preset "admin" }}
- policy.preset is admin: administrators of the parent are administrators of this cluster.
{{- end }}
{{- if (default dict $v.policy).closed }}
- policy.closed is true: nobody is admitted.
{{- end }}
{{- if and (not $v.image.digest) (eq $v.image.tag "latest") }}
- image.tag is latest: nobody knows which version that is, and a restart may change it. Name a version or a digest.
{{- end }}
{{- if (default dict $v.resources.limits).cpu }}
- resources.limits.cpu slows down everybody's requests when it is reached; leave it out unless you have to.
{{- end }}
{{- if or (ne $v.roles.edit "edit") (ne $v.roles.view "view") }}
{{- range $role := list "edit" "view" }}
{{- if eq (index $v.roles $role) "cluster-admin" }}
- roles.{{ $role }} is cluster-admin: whoever the parent calls {{ $role }} is an administrator here.
{{- end }}
{{- end }}
{{- end }}
{{- end }}
