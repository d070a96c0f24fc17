"""Settings of the stand-alone site: the admin, and the commands.

The database comes from syncdata's own configuration (the TOML file named by DATA_SYNC_CONFIG); a production
host, whose file has a [source] and no local database, has none. The site's few settings come from the
environment, or from a file `.env` beside manage.py:

SECRET_KEY      made and kept beside the configuration file when it is not set
DEBUG           off
ALLOWED_HOSTS   localhost,127.0.0.1,[::1]
HTTPS           on: plain http is redirected and cookies travel over https only. `manage.py runserver`
                speaks nothing but http, so there it is off. Set HTTPS=off to serve plain http otherwise
HSTS_SECONDS    how long browsers insist on https once they have seen it: 30 days
BEHIND_PROXY    off; turn it on only behind a proxy that ends TLS, always sets X-Forwarded-Proto itself, and
                appends the client's address to X-Forwarded-For
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from pathlib import Path
from typing import Any

import environ
from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

from syncdata.conf import CONFIG_VARIABLE, SyncConfig, is_production_host, load_config_file
from syncdata.errors import SyncError
from syncsite.environment import read_env_file, read_seconds
from syncsite.secretkey import load_or_create_secret_key

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
try:
    read_env_file(env, BASE_DIR / ".env")
    _hsts_seconds = read_seconds(env, "HSTS_SECONDS", 30 * 24 * 3600)
except SyncError as error:
    raise ImproperlyConfigured(str(error)) from None


def _load_configuration() -> SyncConfig | None:
    """Return the local side's configuration; None where there is none, and when an operator asks for help.

    What needs no database (help, makemigrations, the demo, the commands of the production side) works
    without; the rest says what is missing.
    """
    try:
        return None if is_production_host() else load_config_file()
    except SyncError as error:
        if os.environ.get(CONFIG_VARIABLE) and not {"help", "--help", "-h"} & {*sys.argv}:
            raise ImproperlyConfigured(str(error)) from None
        return None


def _database(config: SyncConfig) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": config.pg_host,
        "PORT": config.pg_port,
        "USER": config.pg_user,
        "PASSWORD": config.pg_password or "",
        "NAME": config.pg_database,
        "OPTIONS": {"connect_timeout": 10, "application_name": "syncdata"} | config.tls_params,
    }


_config = _load_configuration()

DATABASES = {"default": _database(_config)} if _config else {}

# Without a configuration nothing is served, so the key need not outlive the process.
SECRET_KEY = env.str("SECRET_KEY", default="") or (
    load_or_create_secret_key(_config.state_dir) if _config else get_random_secret_key()
)
DEBUG = env.bool("DEBUG", default=False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])

_https = env.bool("HTTPS", default="runserver" not in sys.argv)
SECURE_SSL_REDIRECT = _https
SESSION_COOKIE_SECURE = _https
CSRF_COOKIE_SECURE = _https
# Browsers heed these over https only. "preload" has no effect before the owner of the domain submits it.
SECURE_HSTS_SECONDS = _hsts_seconds if _https else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
BEHIND_PROXY = env.bool("BEHIND_PROXY", default=False)
if BEHIND_PROXY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
CSRF_COOKIE_HTTPONLY = True  # no page's script needs it: the forms hold the token

# Nothing is loaded from elsewhere, and what is inline (the date filters) takes the answer's own nonce.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        "style-src": [SELF, NONCE],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}

# Five wrong passwords for one name from one address lock out that name from that address, and nobody else.
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = dt.timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # else a script that goes on would lock out for ever
AXES_CLIENT_IP_CALLABLE = "syncsite.logins.client_address"
AXES_USERNAME_CALLABLE = "syncsite.logins.client_name"
AXES_LOCKOUT_CALLABLE = "syncsite.logins.locked_out"
AXES_DISABLE_ACCESS_LOG = True  # who logs in when is nobody's business here; failures are counted only
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False

INSTALLED_APPS = [
    "syncsite",
    "syncdata",
    "rangefilter",
    "axes",
    "csp",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "syncsite.middleware.PlainRequests",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]

AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",  # refuses those who are locked out before a password is looked at
    "django.contrib.auth.backends.ModelBackend",
]

ROOT_URLCONF = "syncsite.urls"
WSGI_APPLICATION = "syncsite.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# Static files are served by the site itself, straight from the apps: no web server, no collectstatic.
STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{validator}"}
    for validator in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"
FORMAT_MODULE_PATH = "syncsite.formats"
