"""The keys of retrieval problems: short common words, so few that a small vocabulary has a token for each."""

_WORDS = """
acorn actor adult alarm album alley amber angel anger ankle apple apron arena arrow attic aunt baby badge baker
ball band bank bark barn basin beach bead bean bear beard beast bed bee beer bell belt bench berry bike bird
blade block boat bolt bone book boot bowl box boy brain bread brick broom brush bus cabin cable cake camel camp
canal cap car card cart cat cave chain chair chalk chest chin city clay cliff clock cloth cloud club coal coast
coat coin comb coral corn couch cow crab crane cream crow crown cup daisy dance deer desk dish dog doll door
drum duck dust ear east egg eye face farm fern fire fish flag fog fork fox frog gate goat gold gull hair hall
hand hat hawk head hen herb hill hive hood hook horn ice ink iron ivy jam jar key king kite knee knot lake lamb
lamp land leaf lid lily lime lion lip lock log map mask meal milk mill mint moon moss moth mud nail neck nest
net nose nut oak oat oil oven owl ox page palm pan park path pear pen pie pig pine pipe plum poem pond pony pot
pump raft rail rain ring road rock roof room root rope rose rug sail salt sand sea seed ship shoe shop silk sky
sled snow soap sock sofa soil song soup star stem suit sun swan tail tea tent tile town toy tree vase vine wall
wave wax well west wind wine wing wolf wood wool worm yard
"""
WORDS = tuple(_WORDS.split())
