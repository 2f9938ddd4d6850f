"""Facts in many wordings: what is known of a subject, ways to say each relation, and sentences in front.

Every combination is a prompt, so that an activation that is shared by many of them shows what it is about: the subject, the relation, the
answer, the language of the place or person, the kind of answer, the wording, or the sentence in front. Needs no file and no download.
"""

import functools
from collections.abc import Iterator

# Sentences in front of a prompt; some name other people and places, which an activation that is about the subject does not heed.
OPENINGS = ("", "Here is a fact. ", "My friend asked me a question. ", "Mary went to school in London. ")

# Relation -> the kind of its answers, and its wordings.
RELATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
  "capital": ("city", ("The capital of {} is", "The capital city of {} is", "{} has its capital in", "The government of {} sits in")),
  "language_of_country": ("language", ("The official language of {} is", "Most people in {} speak", "In {} the main language is")),
  "continent": ("continent", ("{} is a country on the continent of", "{} lies on the continent of", "On the map, {} is found in")),
  "currency": ("currency", ("The currency of {} is the", "In {} people pay with the", "The money used in {} is the")),
  "native_language": ("language", ("The native language of {} was", "{} grew up speaking", "{} wrote letters in")),
  "birth_country": ("country", ("{} was born in the country of", "The home country of {} was", "{} came from")),
  "profession": ("profession", ("{} worked as a", "By profession, {} was a", "{} became famous as a")),
  "city_in_country": ("country", ("{} is a city in", "The city of {} is in the country of", "People who live in {} live in")),
  "language_of_city": ("language", ("People in the city of {} speak", "The language heard in the streets of {} is")),
  "landmark": ("city", ("{} is in the city of", "{} can be visited in", "To see {}, tourists travel to")),
  "landmark_country": ("country", ("{} is in the country of", "{} is a famous sight in")),
  "inventor": ("person", ("{} was invented by", "The inventor of {} was")),
  "author": ("person", ("{} was written by", "The author of {} is", "The book {} is by")),
  "painter": ("person", ("{} was painted by", "The painter of {} was")),
  "composer": ("person", ("{} was composed by", "The music of {} is by")),
  "company_product": ("company", ("The {} is made by", "The {} is a product of", "The company behind the {} is")),
  "founder": ("person", ("{} was founded by", "The founder of {} is", "{} was started by")),
  "company_country": ("country", ("{} is a company from", "The company {} has its headquarters in the country of")),
  "sport": ("sport", ("{} is famous for playing", "The sport that {} played is", "{} was a star of")),
  "symbol": ("symbol", ("The chemical symbol of {} is", "In the periodic table, {} is written as")),
  "animal_young": ("animal", ("A young {} is called a", "The young of a {} is a")),
}  # fmt: skip

# Name, capital, language, continent, currency; "" where there are several or none is well known.
_COUNTRIES = """\
France|Paris|French|Europe|euro
Germany|Berlin|German|Europe|euro
Italy|Rome|Italian|Europe|euro
Spain|Madrid|Spanish|Europe|euro
Portugal|Lisbon|Portuguese|Europe|euro
Greece|Athens|Greek|Europe|euro
Austria|Vienna|German|Europe|euro
Finland|Helsinki|Finnish|Europe|euro
Ireland|Dublin|English|Europe|euro
Poland|Warsaw|Polish|Europe|zloty
Hungary|Budapest|Hungarian|Europe|forint
Sweden|Stockholm|Swedish|Europe|krona
Norway|Oslo|Norwegian|Europe|krone
Denmark|Copenhagen|Danish|Europe|krone
Russia|Moscow|Russian||ruble
Turkey|Ankara|Turkish||lira
Japan|Tokyo|Japanese|Asia|yen
China|Beijing|Chinese|Asia|yuan
India|New Delhi|Hindi|Asia|rupee
Thailand|Bangkok|Thai|Asia|baht
Vietnam|Hanoi|Vietnamese|Asia|dong
South Korea|Seoul|Korean|Asia|won
Iran|Tehran|Persian|Asia|rial
Iraq|Baghdad|Arabic|Asia|dinar
Egypt|Cairo|Arabic|Africa|pound
Kenya|Nairobi||Africa|shilling
Nigeria|Abuja|English|Africa|naira
Morocco|Rabat|Arabic|Africa|dirham
Brazil|Brasília|Portuguese|South America|real
Argentina|Buenos Aires|Spanish|South America|peso
Peru|Lima|Spanish|South America|sol
Chile|Santiago|Spanish|South America|peso
Mexico|Mexico City|Spanish|North America|peso
Cuba|Havana|Spanish|North America|peso
Canada|Ottawa||North America|dollar
"""

# Name, native language, country of birth, profession.
_PEOPLE = """\
Victor Hugo|French|France|writer
Voltaire|French|France|philosopher
Claude Monet|French|France|painter
René Descartes|French|France|philosopher
Louis Pasteur|French|France|chemist
Johann Wolfgang von Goethe|German|Germany|poet
Friedrich Nietzsche|German|Germany|philosopher
Albert Einstein|German|Germany|physicist
Johann Sebastian Bach|German|Germany|composer
Ludwig van Beethoven|German|Germany|composer
Wolfgang Amadeus Mozart|German|Austria|composer
Sigmund Freud|German|Austria|psychologist
Leo Tolstoy|Russian|Russia|writer
Fyodor Dostoevsky|Russian|Russia|writer
Pyotr Ilyich Tchaikovsky|Russian|Russia|composer
Dante Alighieri|Italian|Italy|poet
Galileo Galilei|Italian|Italy|astronomer
Giuseppe Verdi|Italian|Italy|composer
Pablo Picasso|Spanish|Spain|painter
Miguel de Cervantes|Spanish|Spain|writer
Charles Dickens|English|England|writer
Jane Austen|English|England|writer
Isaac Newton|English|England|physicist
Charles Darwin|English|England|naturalist
Hans Christian Andersen|Danish|Denmark|writer
Niels Bohr|Danish|Denmark|physicist
Frédéric Chopin|Polish|Poland|composer
Nicolaus Copernicus|Polish|Poland|astronomer
Plato|Greek|Greece|philosopher
Aristotle|Greek|Greece|philosopher
"""

# Name, country, language.
_CITIES = """\
Munich|Germany|German
Hamburg|Germany|German
Milan|Italy|Italian
Naples|Italy|Italian
Barcelona|Spain|Spanish
Seville|Spain|Spanish
Lyon|France|French
Marseille|France|French
Osaka|Japan|Japanese
Kyoto|Japan|Japanese
Shanghai|China|Chinese
Toronto|Canada|English
Sydney|Australia|English
Melbourne|Australia|English
Manchester|England|English
Istanbul|Turkey|Turkish
Saint Petersburg|Russia|Russian
Kraków|Poland|Polish
"""

# Name, city, country, language.
_LANDMARKS = """\
The Eiffel Tower|Paris|France|French
The Louvre|Paris|France|French
The Colosseum|Rome|Italy|Italian
The Trevi Fountain|Rome|Italy|Italian
Big Ben|London|England|English
Buckingham Palace|London|England|English
The Brandenburg Gate|Berlin|Germany|German
The Acropolis|Athens|Greece|Greek
The Kremlin|Moscow|Russia|Russian
The Sagrada Familia|Barcelona|Spain|Spanish
The Golden Gate Bridge|San Francisco||English
The Empire State Building|New York||English
The Statue of Liberty|New York||English
"""

# Name, founder, country.
_COMPANIES = """\
Microsoft|Bill Gates|
Apple|Steve Jobs|
Amazon|Jeff Bezos|
Facebook|Mark Zuckerberg|
SpaceX|Elon Musk|
Toyota||Japan
Sony||Japan
Nintendo||Japan
Honda||Japan
Volkswagen||Germany
Siemens||Germany
Samsung||South Korea
Ferrari|Enzo Ferrari|Italy
"""

# Relation -> "subject|answer" of facts about subjects of which one thing is known; a third field is the language.
_OTHERS = {
  "inventor": "The telephone|Alexander Graham Bell;The phonograph|Thomas Edison;Dynamite|Alfred Nobel;The World Wide Web|Tim Berners-Lee;"
  "The lightning rod|Benjamin Franklin;The cotton gin|Eli Whitney;The diesel engine|Rudolf Diesel|German;"
  "The printing press|Johannes Gutenberg|German",
  "author": "Hamlet|William Shakespeare|English;Macbeth|William Shakespeare|English;Pride and Prejudice|Jane Austen|English;"
  "Oliver Twist|Charles Dickens|English;A Christmas Carol|Charles Dickens|English;War and Peace|Leo Tolstoy|Russian;"
  "Anna Karenina|Leo Tolstoy|Russian;Crime and Punishment|Fyodor Dostoevsky|Russian;Don Quixote|Miguel de Cervantes|Spanish;"
  "Moby-Dick|Herman Melville|English;Frankenstein|Mary Shelley|English;Dracula|Bram Stoker|English;The Hobbit|J. R. R. Tolkien|English;"
  "Animal Farm|George Orwell|English;Les Misérables|Victor Hugo|French;Faust|Johann Wolfgang von Goethe|German;"
  "The Divine Comedy|Dante Alighieri|Italian",
  "painter": "The Mona Lisa|Leonardo da Vinci|Italian;The Last Supper|Leonardo da Vinci|Italian;The Starry Night|Vincent van Gogh;"
  "Guernica|Pablo Picasso|Spanish;The Scream|Edvard Munch;The Birth of Venus|Sandro Botticelli|Italian",
  "composer": "The Magic Flute|Wolfgang Amadeus Mozart|German;The Four Seasons|Antonio Vivaldi|Italian;"
  "Swan Lake|Pyotr Ilyich Tchaikovsky|Russian;The Nutcracker|Pyotr Ilyich Tchaikovsky|Russian;Aida|Giuseppe Verdi|Italian;"
  "Carmen|Georges Bizet|French",
  "company_product": "iPhone|Apple;iPad|Apple;MacBook|Apple;Xbox|Microsoft;PlayStation|Sony;Walkman|Sony;Game Boy|Nintendo;Wii|Nintendo;"
  "Kindle|Amazon;Mustang|Ford;Corvette|Chevrolet;Civic|Honda;Corolla|Toyota;ThinkPad|Lenovo",
  "sport": "Michael Jordan|basketball;LeBron James|basketball;Kobe Bryant|basketball;Roger Federer|tennis;Serena Williams|tennis;"
  "Rafael Nadal|tennis;Lionel Messi|soccer;Diego Maradona|soccer;Babe Ruth|baseball;Wayne Gretzky|hockey;Tiger Woods|golf;"
  "Tom Brady|football;Garry Kasparov|chess",
  "symbol": "hydrogen|H;oxygen|O;carbon|C;nitrogen|N;iron|Fe;gold|Au;silver|Ag;sodium|Na;helium|He;copper|Cu",
  "animal_young": "dog|puppy;cat|kitten;cow|calf;sheep|lamb;horse|foal;lion|cub;goat|kid;bear|cub",
}


def _fields(table: str) -> list[list[str]]:
  return [line.split("|") for line in table.splitlines()]


@functools.cache
def facts() -> tuple[tuple[str, str, str, str], ...]:
  """(relation, subject, answer, language of the place or person; "" for none)."""
  found = []
  for name, capital, language, continent, currency in _fields(_COUNTRIES):
    answers = (
      ("capital", capital),
      ("language_of_country", language),
      ("continent", continent),
      ("currency", currency),
    )
    found += [(relation, name, answer, language) for relation, answer in answers]
  for name, language, country, profession in _fields(_PEOPLE):
    of_person = (("native_language", language), ("birth_country", country), ("profession", profession))
    found += [(relation, name, answer, language) for relation, answer in of_person]
  for name, country, language in _fields(_CITIES):
    found += [("city_in_country", name, country, language), ("language_of_city", name, language, language)]
  for name, city, country, language in _fields(_LANDMARKS):
    found += [("landmark", name, city, language), ("landmark_country", name, country, language)]
  for name, founder, country in _fields(_COMPANIES):
    found += [("founder", name, founder, ""), ("company_country", name, country, "")]
  for relation, listed in _OTHERS.items():
    for fact in listed.split(";"):
      subject, answer, language = (*fact.split("|"), "")[:3]
      found.append((relation, subject, answer, language))
  return tuple(fact for fact in found if fact[2])


def composed() -> Iterator[dict]:
  """Yields every fact in every wording behind every sentence, with what each is: the fields of `fact_files` and "kind", "wording", "opening", "language"."""
  for relation, subject, answer, language in facts():
    kind, wordings = RELATIONS[relation]
    for wording in wordings:
      named = subject
      if not wording.startswith("{}") and subject.startswith("The ") and relation != "author":
        named = "the " + subject[4:]  # inside of a sentence; titles of books keep theirs
      for opening in OPENINGS:
        yield {
          "prompt": opening + wording.format(named),
          "subject": named,
          "answer": answer,
          "relation": relation,
          "entity": subject,
          "kind": kind,
          "wording": wording,
          "opening": opening.strip(),
          "language": language,
        }
