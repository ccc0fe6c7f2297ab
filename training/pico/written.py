"""Sentences that need text normalization: digits, dates, money, units, titles, initials, names.

Responsible for patterns. Not responsible for normalization: chatterbox_opt/text/english does it,
the same in training and inference.
"""

from __future__ import annotations

import numpy as np
from num2words import num2words

from chatterbox_opt.text.english.normalizer import read_english

Rng = np.random.Generator

WORDS: dict[str, str] = {  # a slot is a word in braces
    "month": "January|February|March|April|May|June|July|August|September|October|November|"
    "December",
    "mon": "Jan.|Feb.|Mar.|Apr.|Aug.|Sept.|Oct.|Nov.|Dec.",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "wd": "Mon.|Tues.|Wed.|Thurs.|Fri.|Sat.|Sun.",
    "title": "Mr.|Mrs.|Ms.|Dr.|Prof.|Capt.|Gen.|Sen.|Gov.|Rev.",
    "first": "Emma|Liam|Olivia|Noah|Sophie|Oscar|Marta|Ivan|Yuki|Omar|Priya|Lucas|Elena|Peter|"
    "Julia|Victor|Helen|Martin|Nadia|Simon|Laura|Hugo|Alice|Ben|Carlos|Diana|Ethan|Fiona|George|Hannah",
    "last": "Smith|Jones|Carter|Bennett|Fischer|Weber|Rossi|Garcia|Moreau|Dubois|Kowalski|Horvat|"
    "Silva|Costa|Tanaka|Sato|Kim|Nguyen|Singh|Sharma|Ahmed|Hassan|Adeyemi|Mensah|Larsen|Berg|"
    "Johansson|Virtanen|Ivanov|Petrov|Murphy|Walsh|Campbell|Fraser|Turner|Baker|Mitchell|Rivera|"
    "Ortiz|Delgado|Becker|Keller|Schmidt|Novotny|Popescu|Jensen|Andersen|Coleman|Reyes|Harper",
    "org": "BBC|CIA|UN|USA|UK|IBM|NBA|WHO|IMF|DVD|ATM|GPS|TV|PC|HR|CEO|PhD|VIP|UFO|RSVP|DNA|"
    "FBI|EU|U.S.|NASA|AA|CBS|NHS|MIT|FDA|NHL|BMW|KLM",
    "word": "bluebird|office|travel|garden|riverside|letters|market|museum|orchard|weather",
    "city": "London|Paris|Chicago|Denver|Madrid|Lisbon|Dublin|Oslo|Vienna|Prague|Cairo|Lagos|"
    "Delhi|Tokyo|Sydney|Toronto|Dallas|Seattle|Berlin|Rome",
    "street": "Oak St.|Main St.|High Rd.|Park Ave.|Elm St.|Church Rd.|Lake Blvd.|River St.|"
    "Hill Ave.",
    "thing": "books|chairs|tickets|boxes|letters|apples|eggs|bottles|horses|people|children|"
    "students|houses|cars|trees|songs|pages|stamps|coins|windows|members|patients|guests|shoes",
    "cost": "The ticket|A coffee|The bill|Dinner|The repair|Her coat|The course|This lamp|A room|"
    "The fare|His watch|Parking|Petrol|The rent|A loaf of bread|The house",
    "who": "He|She|The company|My uncle|The city|Our club|The team|The farmer|Her boss|The bank",
    "unit": "km|m|cm|mm|kg|g|lbs|oz|ml|mph|GB|MB|km/h|ft",
    "span": "minutes|hours|days|weeks|months|years|seconds",
    "king": "Henry II|Louis XIV|Charles V|George III|Edward VI|Philip IV|Elizabeth I|Richard III",
    "letter": "A|B|C|D|E|F|G|H|K|M|P|R|T|X",
    "ap": "a.m.|p.m.|am|pm",
    "sign": "$|$|$|€|£",
}
PATTERNS = """\
{cost} costs {money}.
{cost} was {money}, not {money}.
{who} paid {money} for {small} {thing}.
{who} owes {first} {money}.
{cost} went from {money} up to {money} in {year}.
{who} sold it for {sign}{decimal} million.
{who} made {sign}{decimal} billion in {year}.
It costs {money} a month, or {money} a year.
The price fell by {percent} to {money}.
The train to {city} leaves at {time}.
We meet at {time} {ap} on {day}.
The shop is open from {hour} to {hour}, {wd} to {wd}.
The show starts at {clock}.
Wake me at {time} {ap}, please.
Flight {large} lands at {clock}.
It happened on {date} {month} {year}.
The meeting is on {wd}, {date} {month}.
It is due on {iso}.
We came back on the {ordinal} of {month}.
From {mon} to {mon} it rains.
In {year}, {city} had {comma} {thing}.
The {decade}s were quiet years.
It was built in {year} and sold in {year}.
{percent} of the {thing} were lost.
There are {number} {thing} in the room.
{who} counted {comma} {thing}.
{who} has {small} {thing} & {small} {thing}.
{who} finished {ordinal} of {small}.
The office is on the {ordinal} floor.
It is {number} {unit} long.
{who} carried {decimal} {unit} of it.
It was {small}°C in {city}.
Bake it at {tens}°C for {small} min.
We walked {decimal} miles in {small} hours.
{who} drove {number} miles at {tens} mph.
{title} {last} has {number} {thing}.
{first} {last} wrote {small} letters to {title} {last}.
Please call {title} {last} before {hour} o'clock.
{first} {last} and {first} {last} live in {city}.
{title} {last} came from {city} in {year}.
{first} works for the {org}.
The {org} sent {small} {thing}.
King {king} ruled for {small} years.
Chapter {small}, page {number}.
The score was {small}-{small}.
We won {small} to {small} on {day}.
{who} scored {decimal} points.
Room {number} is next to room {number}.
Apt. {small}{letter} is empty.
No. {number} is the last house.
My number is {digits}.
It took {small} {span}, approx. {small} more than usual.
Bring water, bread, etc.
We need {small} {thing}, e.g. old ones.
{small} people came vs. {number} last year.
{number}.
{comma}.
{year}.
{small}, {small}, {small}, {small}.
{ordinal}, {ordinal} and {ordinal}.
{title} {last} moved to {number} {street} in {year}.
It is -{small}°C outside.
Only {percent} of the {thing} came back.
{small} + {small} is {small}.
It needs {decimal} GB of memory.
The town had {comma} people in {year}.
World War I began in {year}.
Their wedding was on {slashes}.
Heat it to {tens}°C, wait {small} min., then stop.
It is {time} {ap} here and {time} {ap} in {city}.
Breakfast is served until {time} {ap} on {wd}
My alarm rings at {time} {ap} every {day}.
{first} woke at {time} {ap} and slept by {time} {ap}.
The lesson begins at {time} and lasts {small} minutes.
The bus from {city} comes at {time}, {time} and {time}.
Trains stop here at {clock} and {clock}.
Platform {small} is closed until {time} {ap}.
Dial {phone} for the {org}.
Ring {first} on {phone} before {time} {ap}.
The code is {digits}, then {number}.
Write to {first}@{word}.com about it.
Look at www.{word}.org or {word}.com.
{fraction} of the {thing} are new.
Pour {fraction} cup of milk over {fraction} of the {thing}.
{who} ate {fraction} of it by {time}.
{first} {last} Jr. came on {month} {date}, {year}.
{first} {last} Sr. died in {year} at {tens}.
{first} came in {short}, {last} in {short}.
The {short} of {month} is a {day}.
Music of the '{tens_years}s is back.
In the {decade}s {city} had {comma} {thing}.
{who} lost to {first} {small}-{small} in {city}.
Add {small} ml of milk and {number} g of rice.
The {org} and the {org} met in {city} on {wd}
{title} {last} won {sign}{number} at the {org}.
{who} weighs {small} kg and runs {decimal} km.
Size {small}{letter} costs {money} less than {small}{letter}.
""".splitlines()


def sentence(rng: Rng) -> str:
    """Generate a sentence from ``PATTERNS``, normalized; it may begin in lower case."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    parts = pattern.split("{")
    text = parts[0]
    for part in parts[1:]:
        slot, _, rest = part.partition("}")
        text += _fill_slot(slot, rng) + rest
    return read_english(text[0].upper() + text[1:]).text


def _fill_slot(slot: str, rng: Rng) -> str:
    if slot in WORDS:
        choices = WORDS[slot].split("|")
        return choices[rng.integers(len(choices))]
    return str(NUMBERS[slot](rng))


def _number(rng: Rng) -> int:
    """Log-uniform up to 9,999: equally many of each length."""
    return int(10 ** rng.uniform(0.3, 4))


def _ordinal(rng: Rng) -> str:
    return str(num2words(int(rng.integers(1, 32)), to="ordinal_num"))


def _money(rng: Rng) -> str:
    sign = _fill_slot("sign", rng)
    if rng.random() < 0.5:
        return f"{sign}{int(10 ** rng.uniform(0, 3))}.{rng.integers(1, 100):02d}"
    return f"{sign}{_number(rng):,}"


def _iso(rng: Rng) -> str:
    return f"{rng.integers(1950, 2050)}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"


NUMBERS = {
    "small": lambda rng: rng.integers(2, 60),
    "number": _number,
    "large": lambda rng: rng.integers(100, 1000),
    "tens": lambda rng: 10 * rng.integers(2, 25),
    "comma": lambda rng: f"{int(10 ** rng.uniform(3, 6)):,}",
    "decimal": lambda rng: f"{rng.integers(0, 100)}.{rng.integers(1, 10)}",
    "percent": lambda rng: f"{rng.integers(1, 101)}%",
    "fraction": lambda rng: f"1/{rng.integers(2, 5)}",
    "year": lambda rng: rng.integers(1700, 2060),
    "decade": lambda rng: 10 * rng.integers(180, 203),
    "date": lambda rng: rng.integers(1, 32),
    "ordinal": _ordinal,
    "hour": lambda rng: rng.integers(1, 13),
    "time": lambda rng: f"{rng.integers(1, 13)}:{rng.integers(0, 60):02d}",
    "clock": lambda rng: f"{rng.integers(13, 24)}:{rng.integers(0, 60):02d}",
    "money": _money,
    "slashes": lambda rng: (
        f"{rng.integers(1, 13)}/{rng.integers(1, 29)}/{rng.integers(1920, 2030)}"
    ),
    "iso": _iso,
    "phone": lambda rng: f"{rng.integers(200, 1000)}-{rng.integers(0, 10_000):04d}",
    "short": lambda rng: num2words(int(rng.integers(1, 32)), to="ordinal_num"),
    "tens_years": lambda rng: 10 * rng.integers(2, 10),
    "digits": lambda rng: "-".join(f"{rng.integers(100, 1000)}" for _ in range(2)),
}
