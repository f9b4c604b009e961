{{- define "staddle.name" -}}
{{- printf "%s-staddle" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "staddle.selector" -}}
app.kubernetes.io/name: staddle
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "staddle.labels" -}}
{{ include "staddle.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}
