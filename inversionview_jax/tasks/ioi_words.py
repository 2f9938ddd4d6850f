"""Templates, names, places and objects of the texts of `ioi`."""

# {0} and {1} are the two names in their order, {2} is the one who gives; the other one is the answer, after the last word.
TEMPLATES = (
  "Then, {0} and {1} went to the {place}. {2} gave a {object} to",
  "When {0} and {1} went to the {place}, {2} gave a {object} to",
  "Then, {0} and {1} had a lot of fun at the {place}. {2} gave a {object} to",
  "Then, {0} and {1} had a long argument at the {place}. Afterwards {2} gave a {object} to",
  "Then, {0} and {1} were working at the {place}. {2} decided to give a {object} to",
  "Then, {0} and {1} stayed at the {place} until evening. {2} gave a {object} to",
  "Yesterday {0} and {1} met at the {place}. In the end {2} gave a {object} to",
  "While {0} and {1} were waiting at the {place}, {2} handed a {object} to",
  "When {0} and {1} were sitting in the {place}, {2} gave a {object} to",
  "Last week {0} and {1} stayed at the {place}. Then {2} gave a {object} to",
)
NAMES = (
  "Mary John Tom James Sarah Anna Peter Paul David Laura Alice Jack Kate Mark Emma Susan Michael Robert William Linda Karen Lisa Nancy "
  "Daniel Matthew Anthony Steven Andrew Kevin Brian George Edward Jason Jeff Ryan Jacob Gary Eric Jonathan Stephen Larry Justin Scott "
  "Benjamin Samuel Frank Gregory Raymond Alexander Patrick Dennis Jerry Tyler Aaron Jose Henry Adam Douglas Nathan Walter Ethan Carl "
  "Keith Roger Sean Arthur Joe Louis Wayne Roy Ralph Elizabeth Jennifer Maria Margaret Dorothy Helen Sandra Carol Ruth Michelle Jessica "
  "Rebecca Amy Angela Melissa Stephanie Catherine Martha Diana Julia Rachel Victoria Emily Charlotte Lucy Jane Claire Amanda Ben Sam Dan "
  "Bill Steve Tim Luke Simon Fred Leo Ian Alan Martin Chris Alex"
).split()
PLACES = (
  "store school park office restaurant house hospital library garden station market museum beach church farm airport hotel bank lake"
).split()
OBJECTS = (
  "drink book ring basketball computer kiss necklace bone letter gift phone watch pen key map camera coin flower hat cake ball box card"
).split()
