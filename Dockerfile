# Both sides in one image: `syncdata_start` and the admin at a local machine, `archive_changes` at production.
# docs/containers.md has the commands. The version of Python is the one that the tests run with.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY syncdata syncdata/
RUN /opt/venv/bin/pip install '.[site,monitoring,wsgi]' && /opt/venv/bin/pip uninstall --yes pip setuptools
# The package is in the virtual environment, the site is not. Whoever cloned under umask 077 has files that only
# root could read.
WORKDIR /opt/syncdata
COPY manage.py ./
COPY syncsite syncsite/
COPY templates templates/
RUN chmod -R u=rwX,go=rX /opt/syncdata

FROM python:${PYTHON}-slim
RUN groupadd --system --gid 10001 syncdata \
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/syncdata --no-create-home \
            --shell /usr/sbin/nologin syncdata \
 && install -d -o 10001 -g 10001 -m 700 /var/lib/syncdata /var/lib/syncdata/tmp \
 && install -d -o 10001 -g 10001 -m 750 /srv/archive
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/syncdata /opt/syncdata
WORKDIR /opt/syncdata
# Fetched files are copied to TMPDIR while they are read: to a disk, for /tmp is often in memory.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_SYNC_CONFIG=/var/lib/syncdata/syncdata.toml \
    TMPDIR=/var/lib/syncdata/tmp

USER 10001:10001
# Configuration, state file, spool and chain.json: what has to outlive a container.
VOLUME ["/var/lib/syncdata"]
# The running batch commits, or the open file is delivered, and then the command ends.
STOPSIGNAL SIGTERM
# Of the local side; for the archiver it is `archive_changes --status` (compose.yaml).
HEALTHCHECK --interval=1m --timeout=30s --start-period=2m --retries=3 \
    CMD ["python", "manage.py", "syncdata_status", "--check"]
ENTRYPOINT ["python", "manage.py"]
CMD ["syncdata_start"]
