# The example of a table, as a service of systemd has its secrets: as files.
/^# Without the secrets/d
s/aryeo-relay check routes.yaml/aryeo-relay check --no-secrets routes.yaml/
/^# Secrets are never/a\
# Here they are files: /etc/aryeo-relay/secrets/crm is $CREDENTIALS_DIRECTORY/secret_crm.
s|env: \([A-Z_]*\)_WEBHOOK_SECRET|file: $CREDENTIALS_DIRECTORY/secret_\L\1|
s|env: \([A-Z_]*_TOKEN\)|file: $CREDENTIALS_DIRECTORY/secret_\L\1|
