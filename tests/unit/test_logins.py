"""Which models hold logins or rights."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AbstractUser, Group
from django.contrib.sessions.base_session import AbstractBaseSession
from django.db import models
from django.test import override_settings
from django.test.utils import isolate_apps

from syncdata import logins


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A project with users of its own, as models of an app "syncsite"."""
    installed = ("syncsite", "django.contrib.auth", "django.contrib.contenttypes")
    with isolate_apps(*installed) as registry, override_settings(AUTH_USER_MODEL="syncsite.Person"):
        assert registry is not None
        monkeypatch.setattr(logins, "apps", registry)

        class Contact(models.Model):
            mail = models.TextField()

            class Meta:
                app_label = "syncsite"

        class Person(Contact, AbstractUser):
            groups = models.ManyToManyField(  # type: ignore[assignment]
                Group, through="Membership", related_name="+"
            )
            user_permissions = models.ManyToManyField(  # type: ignore[assignment]
                "auth.Permission", related_name="+"
            )

            class Meta:
                app_label = "syncsite"

        class Membership(models.Model):
            person = models.ForeignKey(Person, models.CASCADE)
            group = models.ForeignKey(Group, models.CASCADE, related_name="+")

            class Meta:
                app_label = "syncsite"

        class Customer(AbstractBaseUser):
            class Meta:
                app_label = "syncsite"

        class Visit(AbstractBaseSession):
            class Meta:
                app_label = "syncsite"

        class Project(models.Model):
            members = models.ManyToManyField(Person)

            class Meta:
                app_label = "syncsite"

        class Staff(Person):
            class Meta:
                app_label = "syncsite"
                proxy = True

        yield


def test_those_of_a_custom_user_and_what_it_is_made_of_hold_logins(project: None) -> None:
    tables = {model._meta.db_table for model in logins._login_models()}
    assert {name for name in tables if name.startswith("syncsite_")} == {
        "syncsite_contact",
        "syncsite_person",
        "syncsite_membership",
        "syncsite_person_user_permissions",
        "syncsite_customer",
        "syncsite_visit",
    }


@pytest.mark.parametrize(
    ("module", "is_one"),
    [
        ("django.contrib.auth", True),
        ("rest_framework.authtoken", True),
        ("allauth.mfa", True),
        ("django_otp.plugins.otp_totp", True),
        ("axes", True),
        ("rest_framework", False),
        ("axes_of_evil", False),
        ("shop.account", False),
    ],
)
def test_apps_of_logins_are_known_by_their_modules(module: str, is_one: bool) -> None:
    class Config:
        name = module

    class Model:
        class _meta:
            app_config = Config

    assert logins._is_of_login_app(Model) is is_one  # type: ignore[arg-type]


PLAIN = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (PLAIN | {"HOST": "localhost"}, True),
        (PLAIN | {"HOST": "127.0.0.1", "PORT": 5432}, True),
        (PLAIN | {"HOST": "/var/run/postgresql", "USER": "other"}, True),
        (PLAIN | {"ENGINE": "django_prometheus.db.backends.postgresql"}, True),
        ({"ENGINE": PLAIN["ENGINE"], "OPTIONS": {"dbname": "shop", "host": "::1"}}, True),
        (PLAIN | {"HOST": "db.example.com"}, False),
        (PLAIN | {"PORT": "5433"}, False),
        (PLAIN | {"NAME": "other"}, False),
        (PLAIN | {"OPTIONS": {"service": "replica"}}, False),
    ],
)
def test_one_database_under_two_aliases_is_known_however_its_address_is_written(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, Any], is_same: bool
) -> None:
    aliases = SimpleNamespace(databases={"default": PLAIN, "replica": other})
    monkeypatch.setattr(logins, "connections", aliases)
    assert logins._is_same_database("default", "replica") is is_same
