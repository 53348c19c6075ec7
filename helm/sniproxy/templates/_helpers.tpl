{{- define "sniproxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* The full name: the release's where that says sniproxy already. */}}
{{- define "sniproxy.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "sniproxy.selectorLabels" -}}
{{- $name := include "sniproxy.fullname" . -}}
app: {{ .Values.labels.app | default $name | quote }}
istio: {{ .Values.labels.istio | default (trimPrefix "istio-" $name) | quote }}
{{- end }}

{{- define "sniproxy.labels" -}}
{{ include "sniproxy.selectorLabels" . }}
{{- range $key, $value := omit .Values.labels "app" "istio" }}
{{ $key }}: {{ $value | quote }}
{{- end }}
app.kubernetes.io/name: {{ include "sniproxy.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{- define "sniproxy.metadata" -}}
name: {{ include "sniproxy.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "sniproxy.labels" . | nindent 2 }}
{{- end }}

{{- define "sniproxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "sniproxy.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "sniproxy.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- /* The folder of the Unix socket, which both containers mount. */}}
{{- define "sniproxy.socketFolder" -}}/run/sniproxy{{- end }}

{{- define "sniproxy.hasSocket" -}}
{{- if and (eq .Values.mode "istio") .Values.listener.unixSocket }}true{{ end }}
{{- end }}

{{- /* Seconds for preStop and for the proxy's own drain, and Kubernetes' deadline for both and what they leave. */}}
{{- define "sniproxy.drainSeconds" -}}
{{- if eq .Values.mode "istio" }}5{{ else }}{{ int .Values.drain.seconds }}{{ end }}
{{- end }}
{{- define "sniproxy.preStopSeconds" -}}
{{- if eq .Values.mode "istio" }}{{ int .Values.drain.seconds }}{{ else }}5{{ end }}
{{- end }}
{{- define "sniproxy.gracePeriodSeconds" -}}
{{- add .Values.drain.seconds 15 }}
{{- end }}

{{- /* Where policies come from, a ConfigMap each, and where they are mounted. One text for volumes, mounts and config:
{list: [{configMap, folder, namespace}]}. */}}
{{- define "sniproxy.policySources" -}}
{{- $name := include "sniproxy.fullname" . }}
{{- $own := list }}
{{- if or .Values.policies (not (or .Values.policiesByNamespace .Values.policiesFrom)) }}
{{- $own = append $own (dict "configMap" (printf "%s-policies" $name) "folder" "/etc/sniproxy/policies/own") }}
{{- end }}
{{- range $namespace := keys .Values.policiesByNamespace | sortAlpha }}
{{- $folder := printf "/etc/sniproxy/policies/namespace-%s" $namespace }}
{{- $own = append $own (dict "configMap" (printf "%s-policies-%s" $name $namespace) "folder" $folder "namespace" $namespace) }}
{{- end }}
{{- range $index, $from := .Values.policiesFrom }}
{{- $source := dict "configMap" $from.name "folder" (printf "/etc/sniproxy/policies/from-%d" $index) }}
{{- if $from.namespace }}{{ $_ := set $source "namespace" $from.namespace }}{{ end }}
{{- $own = append $own $source }}
{{- end }}
{{- dict "list" $own | toYaml }}
{{- end }}

{{- /* The files of one ConfigMap of policies. */}}
{{- define "sniproxy.policyFiles" -}}
{{- range $file, $content := . }}
{{ $file }}: |
{{- if kindIs "string" $content }}
{{ $content | trimSuffix "\n" | indent 2 }}
{{- else }}
{{ $content | toYaml | indent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sniproxy.listener" -}}
{{- $listener := .Values.listener }}
{{- $tlvs := dict "principal" (int $listener.tlvs.principal) "requested_server_name" (int $listener.tlvs.requestedServerName) }}
{{- $identity := dict "tlvs" $tlvs }}
{{- $out := dict "proxy_protocol" "required" "identity" $identity }}
{{- if include "sniproxy.hasSocket" . }}
{{- $_ := set $out "address" (printf "unix:%s/sni.sock" (include "sniproxy.socketFolder" .)) }}
{{- $_ := set $out "trusted_peers" (list "uid:1337") }}
{{- else if eq .Values.mode "istio" }}
{{- $_ := set $out "address" (printf "127.0.0.1:%d" (int $listener.port)) }}
{{- $_ := set $out "trusted_peers" (list "127.0.0.0/8") }}
{{- else }}
{{- $_ := set $out "address" (include "sniproxy.hostAndPort" (list $listener.host $listener.port)) }}
{{- $_ := set $out "proxy_protocol" (eq (toString $listener.proxyProtocol) "required" | ternary "required" "off") }}
{{- with $listener.trustedPeers }}{{ $_ := set $out "trusted_peers" . }}{{ end }}
{{- with $listener.staticPrincipal }}{{ $_ := set $identity "static" . }}{{ end }}
{{- end }}
{{- toYaml $out }}
{{- end }}

{{- define "sniproxy.hostAndPort" -}}
{{- $host := index . 0 }}
{{- if contains ":" $host }}[{{ $host }}]{{ else }}{{ $host }}{{ end }}:{{ int (index . 1) }}
{{- end }}

{{- /* sniproxy.yaml. */}}
{{- define "sniproxy.config" -}}
{{- $files := list }}
{{- range (include "sniproxy.policySources" . | fromYaml).list }}
{{- $glob := printf "%s/*.yaml" .folder }}
{{- $files = append $files (hasKey . "namespace" | ternary (dict "path" $glob "namespace" .namespace) $glob) }}
{{- end }}
{{- $gateway := dict "namespace" .Release.Namespace "labels" (include "sniproxy.selectorLabels" . | fromYaml | merge (deepCopy .Values.labels)) }}
{{- if eq .Values.mode "istio" }}
{{- $_ := set $gateway "root_namespace" .Values.istio.rootNamespace }}
{{- $_ := set $gateway "trust_domain" .Values.istio.trustDomain }}
{{- with .Values.istio.trustDomainAliases }}{{ $_ := set $gateway "trust_domain_aliases" . }}{{ end }}
{{- end }}
{{- $admin := dict "address" (printf "127.0.0.1:%d" (int .Values.admin.port)) "metrics_address" (include "sniproxy.hostAndPort" (list .Values.metrics.host .Values.metrics.port)) }}
{{- $own := dict "listeners" (list (include "sniproxy.listener" . | fromYaml)) "admin" $admin }}
{{- $_ := set $own "policy" (dict "files" $files "gateway" $gateway) }}
{{- $_ := set $own "timeouts" (dict "drain" (printf "%ss" (include "sniproxy.drainSeconds" .))) }}
{{- mergeOverwrite (deepCopy .Values.config) $own | toYaml }}
{{- end }}

{{- /* What a running proxy cannot take over: see "Change it while it runs" in the README. */}}
{{- define "sniproxy.restartKeys" -}}
{{- $config := include "sniproxy.config" . | fromYaml }}
{{- dict "listener" (index $config.listeners 0).address "admin" $config.admin "workers" ($config.workers | default "auto") | toYaml }}
{{- end }}

{{- define "sniproxy.gatewayHost" -}}
{{- printf "%s.%s.svc.%s" (include "sniproxy.fullname" .) .Release.Namespace .Values.istio.clusterDomain }}
{{- end }}

{{- /* The SNI of the tunnel: an exact host's own name, and a placeholder under a wildcard. */}}
{{- define "sniproxy.tunnelSni" -}}
{{- .sni | default (first .hosts | replace "*" "placeholder") }}
{{- end }}
