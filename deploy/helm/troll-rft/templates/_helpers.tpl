{{- /* Short, for a training worker is called by its pod's host name, of which Linux keeps 63 characters. */ -}}
{{- define "troll-rft.name" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 24 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 24 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* What a Deployment selects its pods by: (list $ "component"), and the pool's name where there are pools. */ -}}
{{- define "troll-rft.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- if gt (len .) 2 }}
troll-rft/pool: {{ index . 2 }}
{{- end }}
{{- end }}

{{- define "troll-rft.labels" -}}
{{- $root := index . 0 -}}
{{ include "troll-rft.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{- /* What every pod has in common. The workers' own children leave processes behind, which the pause container, first
       of a shared namespace, sees to. */ -}}
{{- define "troll-rft.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
shareProcessNamespace: true
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "troll-rft.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "troll-rft.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
# Without it the kubelet walks through every checkpoint at each start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- /* Of containers. Those that grade have what building a jail asks for; see docs/graders.md. */ -}}
{{- define "troll-rft.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "troll-rft.jailSecurity" -}}
{{ include "troll-rft.security" . }}
{{- if .Values.jail.enabled }}
seccompProfile: { type: Localhost, localhostProfile: {{ .Values.jail.seccompProfile }} }
appArmorProfile: { type: Unconfined }
{{- end }}
{{- end }}

{{- /* A setting as the text of a variable. Helm reads numbers as floats, and writes large ones as 8.58e+09. */ -}}
{{- define "troll-rft.text" -}}
{{- if or (kindIs "map" .) (kindIs "slice" .) }}{{ toJson . }}
{{- else if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{- /* Variables of a process: (list $ settings), where settings go before those of all. */ -}}
{{- define "troll-rft.environment" -}}
{{- $root := index . 0 -}}
- { name: TROLL_SECRETS_DIR, value: /run/secrets/troll }
- { name: TROLL_DATA_DIR, value: /data }
- { name: TROLL_MODELS_DIR, value: /models }
{{- range $name, $value := merge (deepCopy (index . 1)) $root.Values.settings }}
- name: {{ $name }}
  value: {{ include "troll-rft.text" $value | quote }}
{{- end }}
{{- end }}

{{- /* A file of the secrets' folder. */ -}}
{{- define "troll-rft.secret" -}}
- secret:
    name: {{ .from.name }}
    items: [{ key: {{ .from.key }}, path: {{ .path }} }]
{{- end }}

{{- define "troll-rft.secretsMount" -}}
- { name: secrets, mountPath: /run/secrets/troll, readOnly: true }
{{- end }}

{{- define "troll-rft.folderMounts" -}}
- { name: data, mountPath: /data }
- { name: models, mountPath: /models, readOnly: true }
{{- end }}

{{- define "troll-rft.folders" -}}
- name: data
  persistentVolumeClaim: { claimName: {{ .Values.storage.data.existingClaim | default (printf "%s-data" (include "troll-rft.name" .)) }} }
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.storage.models.existingClaim | default (printf "%s-models" (include "troll-rft.name" .)) }}
    readOnly: true
{{- end }}

{{- /* Where graders' keys are read. */ -}}
{{- define "troll-rft.graderMount" -}}
{{- if .Values.graderSecret }}
- { name: graders, mountPath: /run/graders, readOnly: true }
{{- end }}
{{- end }}

{{- define "troll-rft.graderVolume" -}}
{{- if .Values.graderSecret }}
- name: graders
  secret: { secretName: {{ .Values.graderSecret }}, defaultMode: 0440 }
{{- end }}
{{- end }}

{{- /* Requests and limits of a pool's container, with its GPUs. */ -}}
{{- define "troll-rft.poolResources" -}}
{{- $resources := .resources | default dict }}
{{- $limits := deepCopy ($resources.limits | default dict) }}
{{- if .gpus }}{{- $_ := set $limits (.gpuResource | default "nvidia.com/gpu") .gpus }}{{- end }}
{{- toYaml (dict "requests" ($resources.requests | default dict) "limits" $limits) }}
{{- end }}
