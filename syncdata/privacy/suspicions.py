"""Names that sound like personal data, and a first rule for each column of a table. Pure.

Names are compared word by word, in English, German, French and Spanish: ``ship_to_ip`` and ``shipAddressIP``
have an "ip", ``shipping`` has none. A name is a hint, nothing more: ``data`` may hold anything.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from syncdata.changes.names import TableName
from syncdata.privacy.facts import ColumnFacts, TableFacts, parse_type
from syncdata.privacy.key import TRIAL_KEY
from syncdata.privacy.mask import DATES, DOCUMENTS, INTEGERS, TEXTS
from syncdata.privacy.policy import Domains, Policy
from syncdata.privacy.rules import parse_rule
from syncdata.privacy.values import harmless_value

# By what a column may hold: words, in their singular. Words that a name writes apart are found together, too.
_WORDS = {
    "e-mail address": """email mail emailaddress mailaddress emailadresse mailadresse epost courriel correo
        correoelectronico courrielprincipal""",
    "phone number": """phone telephone phonenumber mobile mobilephone cell cellphone fax tel msisdn whatsapp
        telefon telefonnummer telefonnr rufnummer handy handynummer mobil mobilnummer
        telefono movil""",
    "first name": "firstname forename givenname middlename vorname prenom primernombre",
    "last name": """lastname surname familyname maidenname nachname familienname zuname geburtsname
        nomdefamille apellido""",
    "name": """name fullname displayname username login nickname contactname ansprechpartner benutzername
        kontoinhaber nom nomcomplet nombre nombrecompleto usuario""",
    "address": """address addr streetaddress zip zipcode postcode postalcode adresse anschrift hausnummer plz
        postleitzahl codepostal direccion domicilio codigopostal""",
    "street": "street strasse rue calle",
    "city": "city town wohnort geburtsort stadt ville ciudad birthplace lieudenaissance",
    "date of birth": """birth birthday birthdate dateofbirth dob born geburtsdatum geburtstag gebdatum
        naissance datenaissance datedenaissance nacimiento fechanacimiento""",
    "bank account or card": """iban bic swift bankaccount accountnumber creditcard cardnumber pan cvv cvc
        kontonummer kontonr bankverbindung blz kreditkarte compte comptebancaire cartebancaire tarjeta
        cuentabancaria""",
    "identity number": """ssn socialsecurity socialsecuritynumber nationalid nationalnumber passport
        passportnumber idcard taxid taxnumber driverlicense drivinglicense licenseplate steuernummer steuerid
        sozialversicherungsnummer svnr ahv personalausweis ausweis ausweisnummer reisepass fuehrerschein
        kennzeichen nir insee numerosecu passeport dni nie nif pasaporte curp rfc""",
    "secret": """password passwd pwd passphrase passcode pin token secret apikey accesskey privatekey salt otp
        totp cookie session sessionid credential hash passwort kennwort geheimnis motdepasse mdp contrasena
        clave""",
    "address in a network or device": """ip ipaddr ipaddress ipadresse adresseip direccionip ipv4 ipv6
        useragent mac macaddress deviceid imei imsi fingerprint""",
    "place": "lat latitude lng lon longitude geo geolocation gps coordinate koordinate standort",
    "personal circumstance": """gender sex religion ethnicity nationality diagnosis disability salary
        geschlecht konfession staatsangehoerigkeit diagnose gehalt sexe nationalite salaire
        sexo nacionalidad salario""",
}
_MEANINGS = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
_DEVICE = "address in a network or device"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_MOST_TOGETHER = 4  # fecha_de_nacimiento and the like
_SPELLED_OUT = str.maketrans({"ß": "ss", "ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})

# By meaning, the mask that fits best.
_FITTING: dict[str, object] = {
    "e-mail address": "email",
    "phone number": "phone",
    "first name": "first_name",
    "last name": "last_name",
    "name": "name",
    "street": "street",
    "city": "city",
    "secret": {"mask": "fixed", "value": "!"},
}
_PLAIN = INTEGERS | DATES | {
    "numeric", "real", "double precision", "money", "boolean", "uuid", "interval",
    "time without time zone", "time with time zone",
}  # fmt: skip
_DAYS = 30


def suspicion(name: str) -> str:
    """Return what a column called *name* may hold of a person, such as "phone number"; empty for others."""
    words = [word.lower() for word in _WORD.findall(_plain(name))]
    for together in range(min(_MOST_TOGETHER, len(words)), 0, -1):
        spelled = ("".join(words[place : place + together]) for place in range(len(words) - together + 1))
        found = [_MEANINGS.get(one) or _MEANINGS.get(one.removesuffix("s"), "") for one in spelled]
        # last_login_ip is no name: beside an address of a device, other words say whose it is.
        if meaning := _DEVICE if _DEVICE in found else next(filter(None, found), ""):
            return meaning
    return ""


def suspicions(facts: TableFacts) -> dict[str, str]:
    """Return, by column, what it may hold of a person, for columns whose names sound like it.

    Truth values are none: ``has_phone`` tells little, and ``email_confirmed`` less.
    """
    found = {
        column.name: suspicion(column.name)
        for column in facts.columns
        if parse_type(column.type).name != "boolean"
    }
    return {column: meaning for column, meaning in found.items() if meaning}


def suggest(tables: Sequence[TableFacts]) -> dict[TableName, dict[str, object]]:
    """Return a first rule for each column of *tables*, as a configuration spells it.

    Each can hold: `Policy.judge` finds no problem. Keys, numbers, dates and truth values are kept unless
    their names sound personal; a text or document of which nobody can say what it holds is withheld.
    """
    domains = Domains(tables)
    candidates: dict[str, list[object]] = {}
    for facts, column in _columns(tables):
        domain = domains.of(facts.table, column.name)
        if domain not in candidates or domain == domains.own(facts.table, column.name):
            candidates[domain] = list(_candidates(facts, column))
    while True:
        rules: dict[TableName, dict[str, object]] = {facts.table: {} for facts in tables}
        for facts, column in _columns(tables):
            rules[facts.table][column.name] = candidates[domains.of(facts.table, column.name)][0]
        refused = set(_refused(tables, rules, domains))
        if not refused:
            return rules
        for domain in refused:
            del candidates[domain][0]  # never the last one, "keep": nothing refuses that


def _columns(tables: Sequence[TableFacts]) -> Iterator[tuple[TableFacts, ColumnFacts]]:
    """Yield all columns that need a rule; what a generated column may say follows from the others."""
    return ((facts, column) for facts in tables for column in facts.columns if not column.is_generated)


def _refused(
    tables: Sequence[TableFacts], rules: Mapping[TableName, Mapping[str, object]], domains: Domains
) -> Iterator[str]:
    """Yield the domains of columns that cannot have their rule."""
    parsed = {
        table: {column: parse_rule(rule) for column, rule in columns.items()}
        for table, columns in rules.items()
    }
    for table, verdict in Policy(parsed, key=TRIAL_KEY).judge(tables).items():
        for column in verdict.columns:
            if column.problem:
                yield domains.of(table, column.column)


def _candidates(facts: TableFacts, column: ColumnFacts) -> Iterator[object]:
    """Yield rules for *column*, the best one first; the last one is "keep", which is always possible."""
    kind, meaning = parse_type(column.type), suspicion(column.name)
    is_key = column.name in facts.identity or any(
        column.name in columns for columns in (*facts.uniques, *(one.columns for one in facts.references))
    )
    is_personal = bool(meaning) and kind.name != "boolean"
    if not is_personal and (is_key or kind.name in _PLAIN):
        yield "keep"
    if is_personal and meaning in _FITTING:
        yield _FITTING[meaning]
    if is_personal and kind.name in DATES and facts.identity:
        yield {"mask": "shift", "by": facts.identity[0], "days": _DAYS}
    if is_personal and (is_key or kind.name in TEXTS | {"uuid"} or meaning == "identity number"):
        yield "token"
        yield "permute"
    if column.not_null:
        # Left out, it would have to have a default on the local side.
        if kind.name in DOCUMENTS and not kind.is_array:
            yield {"mask": "json", "paths": {}}
        if column.name in facts.checked and kind.name in TEXTS:
            yield "token"  # an empty text is what a CHECK refuses most often
        harmless = harmless_value(kind)
        if harmless is not None:
            yield {"mask": "fixed", "value": harmless}
        yield "token"
    yield "withhold"
    yield "keep"


def _plain(name: str) -> str:
    """Return *name* without accents, umlauts spelled out as they are in names without them."""
    spelled = unicodedata.normalize("NFC", name).translate(_SPELLED_OUT)
    return unicodedata.normalize("NFKD", spelled).encode("ascii", "ignore").decode()
