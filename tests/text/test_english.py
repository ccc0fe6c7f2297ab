from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.errors import TextError
from chatterbox_opt.text.english.normalizer import read_english
from chatterbox_opt.text.english.reading import Reading

TABLE = [
    line.split(" => ")
    for line in """
I have 1,234 apples. => I have one thousand two hundred and thirty-four apples.
It was -5 outside. => It was minus five outside.
Pi is 3.14, half is .5 => Pi is three point one four, half is point five
He came 1st, she came 22nd. => He came first, she came twenty-second.
the 1,000th visitor => the one thousandth visitor
Agent 007 => Agent zero zero seven
a 5-year-old boy => a five-year-old boy
10-15 people => ten to fifteen people
Wait 15 min., then stop. => Wait fifteen minutes, then stop.
Well..., no. => Well..., no.
Pages 10–15. => Pages ten to fifteen.
12345678901234567 => one two three four five six seven eight nine zero one two three four five six seven
1. First 2) then => one. First two) then
version 3.10.2 => version three point ten point two
In 1999 and 2024. => In nineteen ninety-nine and twenty twenty-four.
in 1066 and in 1812 => in ten sixty-six and in eighteen twelve
1990-1995 => nineteen ninety to nineteen ninety-five
the 1990s and the '90s => the nineteen nineties and the nineties
She is in her 30s. => She is in her thirties.
the 1900s, the 1920's => the nineteen hundreds, the nineteen twenties
On March 3, 2024 we met. => On March third, twenty twenty-four we met.
On 3 March 2024 it rained. => On the third of March, twenty twenty-four it rained.
the 3rd of March => the third of March
Due 2024-03-03. => Due March third, twenty twenty-four.
Due 3/14/2024. => Due March fourteenth, twenty twenty-four.
Due 14/3/24. => Due March fourteenth, twenty twenty-four.
Due 31.12.1999. => Due December thirty-first, nineteen ninety-nine.
Jan. 5 to Feb. 7 => January fifth to February seventh
March 3-5 => March third to fifth
We met in Feb. and on Mon. at noon. => We met in February and on Monday at noon.
Sat. 5 March. He sat. The Sun. => Saturday the fifth of March. He sat. The Sun.
It is 3:45 pm. => It is three forty five P M.
At 9:25 a.m. we left. => At nine twenty five A M we left.
We left at 9:25 a.m. They left at 9 a.m. => We left at nine twenty five, A M. They left at nine A M.
At 10:00 we left. => At ten o'clock we left.
He rose at 7am, or 7 a.m. => He rose at seven A M, or seven A M.
At 5 p.m. Monday => At five P M Monday
We met at 5 p.m. Then we left. => We met at five P M. Then we left.
3:05, 15:30 and 7:45 => three oh five, fifteen thirty and seven forty five
It costs $12.50. => It costs twelve dollars and fifty cents.
£5, €3.20, ¥100 => five pounds, three euros and twenty cents, one hundred yen
$3 million, $2.5bn, $5k => three million dollars, two point five billion dollars, five thousand dollars
$1, $0.99, £1.01 => one dollar, ninety-nine cents, one pound and one penny
50¢ or 20€ => fifty cents or twenty euros
-$5 => minus five dollars
$5-$10 => five dollars to ten dollars
$20/month => twenty dollars per month
US$5 => U S five dollars
50% of 12.5 % => fifty percent of twelve point five percent
Call 555-0123. => Call five five five, zero one two three.
(555) 555-0123 => five five five, five five five, zero one two three
+44 20 7946 0958 => plus four four, two zero, seven nine four six, zero nine five eight
Call 911 now. => Call nine one one now.
1/2 a cup, 3/4, 2 1/2 => one half a cup, three quarters, two and one half
3½ cups => three and one half cups
open 24/7 => open twenty-four seven
5 km, 1 km, 10kg => five kilometers, one kilometer, ten kilograms
70mph, 100 km/h => seventy miles per hour, one hundred kilometers per hour
It is 20°C, not -5 °F. => It is twenty degrees Celsius, not minus five degrees Fahrenheit.
a 10-km run => a ten-kilometer run
6 ft. tall, or 5'10" => six feet tall, or five foot ten
16 GB of RAM => sixteen gigabytes of RAM
Mr. Smith, Mrs. Jones and Dr Lee => Mister Smith, Missus Jones and Doctor Lee
Prof. Plum met Ms. White. => Professor Plum met Miz White.
St. Paul's in St. Louis => Saint Paul's in Saint Louis
He lives on Main St. in town. => He lives on Main Street in town.
12 Oak Dr. is near. => twelve Oak Drive is near.
Cats vs. dogs, etc. are fine. => Cats versus dogs, et cetera are fine.
I like tea, etc. Do you? => I like tea, et cetera. Do you?
E.g. this, i.e. that => For example this, that is that
No. 5 is alive. No. I won't. => Number five is alive. No. I won't.
approx. 5 => approximately five
the U.S. Army in the U.S. The end. => the U S Army in the U S. The end.
John Smith Jr. is here. => John Smith Junior is here.
Tom & Jerry, AT&T => Tom and Jerry, A T and T
#1 and #fun => number one and hashtag fun
2+2=4 => two plus two equals four
J. K. Rowling and George W. Bush => J K Rowling and George W Bush
Plan B. Then go. => Plan B. Then go.
the BBC, the USA and the FBI => the B B C, the U S A and the F B I
NASA, NATO, UNESCO, LASER => NASA, NATO, UNESCO, LASER
PCs, CDs and the BBC's man => P C's, C D's and the B B C's man
The US and the UK. A UFO! => The U S and the U K. A U F O!
STOP RIGHT NOW! => STOP RIGHT NOW!
I TOLD YOU NOT TO GO. => I TOLD YOU NOT TO GO.
I CAN'T BELIEVE IT! => I CAN'T BELIEVE IT!
This is NOT fun. HELP! => This is NOT fun. HELP!
THE BBC IS ON FIRE. => THE B B C IS ON FIRE.
PAY $5 NOW! MEET AT 3:45 PM TODAY. => PAY five dollars NOW! MEET AT three forty five P M TODAY.
It was SO GOOD. => It was SO GOOD.
MP3, COVID-19, 4K, F-16 => M P three, COVID-nineteen, four K, F-sixteen
Henry VIII and Louis XIV's son => Henry the eighth and Louis the fourteenth's son
Queen Elizabeth II => Queen Elizabeth the second
Chapter IV, chapter iv, Part I => Chapter four, chapter four, Part one
World War II, Rocky III => World War two, Rocky three
the XIX century => the nineteenth century
me@example.com => me at example dot com
https://www.example.com/path/ => example dot com slash path
See example.org. Now. => See example dot org. Now.
café, naïve, Zoë, Straße => cafe, naive, Zoe, Strasse
“Hello,” she said — ‘yes’… => "Hello," she said - 'yes'...
Hi 😀! 你好 Привет => Hi!
ﬁne Ⅷ ５ ٣ co­operate => fine eight five three cooperate
rock 'n' roll; O'BRIEN; don't => rock 'n' roll; O'BRIEN; don't
and/or (he/she) [sic] => and or (he she) (sic)
They agreed.¹ They left.² => They agreed. They left.
They agreed.12 Then.They left => They agreed. twelve Then. They left
x² + 10⁻³ + y⁵ => x squared plus ten to the power of minus three plus y to the power of five
5 km², H₂O, CO₂ => five kilometers squared, H two O, C O two
①② ❸ 3½ 1½½ ፩ => one two three three and one half one and one half one half one
I use .NET, ASP.NET, C#, F# and C++. => I use dot Net, A S P dot Net, C sharp, F sharp and C plus plus.
x^2 < 10 => x squared less than ten
if a >= 3 && b != 4 => if a greater than or equal to three and b not equal to four
e^x, x^(n+1), 2**3, 2*3 => e to the power of x, x to the power of n plus one, two to the power of three, two times three
p<0.05, 5±3, ≤ 7, ~5 kg => p less than zero point zero five, five plus or minus three, less than or equal to seven, about five kilograms
5 µm, π, the α-helix => five micrometers, pi, the alpha-helix
2026-11-28T14:05:00Z => November twenty-eighth, twenty twenty-six, fourteen oh five U T C
2026-11-28T14:05:30+01:00 => November twenty-eighth, twenty twenty-six, fourteen oh five and thirty seconds U T C plus one
2026-11-28 09:30 => November twenty-eighth, twenty twenty-six, nine thirty
14:05:09, 7:30:00 => fourteen oh five and nine seconds, seven thirty
Chapter 01, Track 007 => Chapter one, Track seven
II-, World War II-, Part II-B, an IV => two-, World War two-, Part two-B, an I V
3RD 4Th 5GHI abc123def => third fourth five G H I abc one hundred and twenty-three def
$5USD £3.50each x'5 a.5 => five dollars U S D three pounds and fifty pence each x five a point five
Wait…5 minutes, 1, 2, 3...10. So...1st => Wait... five minutes, one, two, three... ten. So... first
Then…2024 or...$5 => Then... twenty twenty-four or... five dollars
I rate it 9.5/10, or 4.5/5. => I rate it nine point five out of ten, or four point five out of five.
It got 7½/10, or 4½/5, on 1/2/10. => It got seven and one half out of ten, or four and one half out of five, on January second, twenty ten.
3½ km, 1/2 kg, 3/4 lb, ½ hr, 10½kg => three and one half kilometers, one half of a kilogram, three quarters of a pound, one half of an hour, ten and one half kilograms
2½-3 mi, 20½ m/s, 24/7 m, 5' 6½" => two and one half to three miles, twenty and one half meters per second, twenty-four seven meters, five foot six and one half
$3½, £1½m, $2½-million, $3½/hr, $½ => three and one half dollars, one and one half million pounds, two and one half million dollar, three and one half dollars per hour, one half of a dollar
$2 BBC, $3B, a $5 BT bill, $7 M => two dollars B B C, three billion dollars, a five dollars B T bill, seven million dollars
3-1/2 inches, 1/4-1/2 cup, 9/11 => three and one half inches, one quarter to one half cup, nine eleven
1/20 of it, 3/50 of us, 1/64, 24/7 => one twentieth of it, three fiftieths of us, one sixty-fourth, twenty-four seven
We left in May. 5 people stayed. Due May 5. => We left in May. five people stayed. Due May fifth.
Open 5:30-6:30 daily, 9-11am. => Open five thirty to six thirty daily, nine to eleven A M.
12:30–1:30 p.m. or 9 a.m. - 5 p.m. => twelve thirty to one thirty P M or nine A M to five P M.
9:00-17:00, 9am-noon, 9am-5 => nine o'clock to seventeen hundred, nine A M to noon, nine A M to five
5km-10km, 5-10 km, 50%-60%, 5k-10k => five kilometers to ten kilometers, five to ten kilometers, fifty percent to sixty percent, five k to ten k
£5-10m, $5m-10m, $1-2 million => five to ten million pounds, five million to ten million dollars, one to two million dollars
$5-10, $500k-1m, $5-$10 million => five to ten dollars, five hundred thousand to one million dollars, five million dollars to ten million dollars
$1.50-2.50, 5€-10€ => one dollar and fifty cents to two dollars and fifty cents, five euros to ten euros
03-14-2024 and 28-11-2026 => March fourteenth, twenty twenty-four and November twenty-eighth, twenty twenty-six
123-45-6789, a 4-4-2, 3 - 2 - 1 => one two three, four five, six seven eight nine, a four, four, two, three, two, one
In 2010 — 5 apples => In twenty ten, five apples
20$, 1,000$, ₩500, 5₽, ₿1 => twenty dollars, one thousand dollars, five hundred won, five rubles, one bitcoin
$1.5 Million, $5 Billion, $3 Bn, $4 tn => one point five million dollars, five billion dollars, three billion dollars, four trillion dollars
a $3-million deal, 2 million € => a three million dollar deal, two million euros
$1,500,000,000,000 => one trillion five hundred billion dollars
10 m/s, 5 mg/ml, 100 km / h => ten meters per second, five milligrams per milliliter, one hundred kilometers per hour
$20/hr, £5/kg, 30€/mo, 5 mg/kg/day => twenty dollars per hour, five pounds per kilogram, thirty euros per month, five milligrams per kilogram per day
50 Hz, 5 kHz, 20 kWh, 5 KB => fifty hertz, five kilohertz, twenty kilowatt-hours, five kilobytes
5 hrs, 5 mins, 1 sec, 100 Mbps => five hours, five minutes, one second, one hundred megabits per second
5 - 3 = 2, the 1990s-2000s => five minus three equals two, the nineteen nineties to two thousands
10<sup>6</sup>, 5<sup>2</sup>, 10<sup>-3</sup>, 5<sup>th</sup> => ten to the power of six, five squared, ten to the power of minus three, fifth
donʼt, Hawaiʻi => don't, Hawai'i
Łódź, Þór, Ærø, ħ, ŋ, ə, Ɓ => Lodz, Thor, Aero, h, ng, e, B
zero​width, soft­hyphen => zero width, softhyphen
""".strip().splitlines()
]

WORDS = re.compile(r"(?:[A-Za-z.,!?;:'\"()-]+(?: [A-Za-z.,!?;:'\"()-]+)*)?")


@pytest.mark.parametrize(("written", "normalized"), TABLE)
def test_the_table(written, normalized):
    assert read_english(written).text == normalized


@pytest.mark.parametrize("normalized", [normalized for _, normalized in TABLE])
def test_normalization_is_idempotent(normalized):
    assert read_english(normalized).text == normalized


@pytest.mark.parametrize("text", ["", " ", "😀", "...", "你好", "()", "\0", "\ud800", "~~~", "¹"])
def test_a_text_without_words_is_an_error(text):
    with pytest.raises(TextError):
        read_english(text)


def read(text: str) -> Reading:
    try:
        return read_english(text)
    except TextError:
        return Reading("")


@given(st.text())
@settings(max_examples=1000, deadline=None)
def test_every_string_becomes_words(text):
    assert all(map(WORDS.fullmatch, read(text).text.split("\n\n")))


@given(st.text(alphabet=" 0123456789.,:;/-$£€%°#@&+'\"()apmstMrJINXVIHe½²\n"))
@settings(max_examples=2000, deadline=None)
def test_strings_that_look_like_numbers_become_words(text):
    normalized = read(text).text
    assert all(map(WORDS.fullmatch, normalized.split("\n\n")))
    assert normalized or not re.search(r"\d", text, re.ASCII)


@given(st.lists(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1), min_size=1))
@settings(max_examples=500, deadline=None)
def test_no_ordinary_word_is_lost(words):
    text = " ".join(words).capitalize()
    assert read_english(text).text == text or re.search(
        r"\b[ivx]+\b", text
    )  # "part ii" is a numeral


@pytest.mark.parametrize(
    "piece",
    ["1", "a", "A ", "I", "1,", "1.", "a.", "a-", "$", "Mr. ", "1-", "AB ", "<a ", "&amp;", "a\n\n"]
    + ["[", "a@", "www.", "я ", "¹", "`", "\n- ", "x^", "<!--", "# ", "a\n---\n"]
    + [
        "http://x,",
        "x.com/,",
        "x.com/?",
        "[^",
        "[^1]",
        "<sup>",
        "<sup>1",
        "1/",
        "1k",
        "5km-",
        "$1-",
    ],
)
def test_a_long_text_takes_linear_time(piece):
    start = time.perf_counter()
    read(piece * 10_000)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("mark", [" ", "#", " #"])
def test_a_long_heading_takes_linear_time(mark):
    start = time.perf_counter()
    read("# a" + mark * 40_000 + "b")
    assert time.perf_counter() - start < 3
