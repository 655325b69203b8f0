"""An answer in, yes or no out: does it doubt the date, the year or the present? docs/date_confusion.md tells the rules.

A clause counts in one of three ways: a phrase of doubt whose object is time ("I am not sure about the year"), time
as the subject of a doubting verb ("2029 sounds wrong to me"), or words that doubt outright ("that lies in the
future"). Doubts about other things, and time named beside them, do not count: "I doubt you need a coat in July".
"""

import re
from dataclasses import dataclass

CLAUSE = re.compile(r"[.!;\n]+|\?(?= )|, but (?=I\b)|, so (?=I\b)")

# doubt words that deny doubt: "no doubt", "I do not doubt", "no reason to doubt"
DENIED = re.compile(r"\b(?:no|without|without a|without any|beyond|not|never|don't|can't|no reason to) doubt(?:s|ed)?\b", re.I)

_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = rf"(?:(?:1[89]|2[01])\d\d\b|(?:the )?\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH}|{_MONTH} (?:\d|the \d))"
_NOUN = (
    r"(?:(?:the|your|this|that|today's|what|which) )?(?:(?:current|present|exact|actual|real|stated|given|correct) )*"
    r"(?:date|year|calendar|present day|present time|present moment|future|past|day it is|month it is|time it is)\b(?! you gave| for dinner)"
)
_TIME_OBJECT = rf"(?:{_DATE}|{_NOUN}|today\b(?!'s)|the present\b(?! (?:that|you|for))|how much time has passed)"
_TIME_PREDICATE = (
    rf"(?:{_DATE}|already|still (?:right|true|correct|valid|current|accurate|the case|hold)|still holds|up[ -]to[ -]date|current\b|out of date|outdated"
    rf"|today's date|the (?:date|year)\b|(?:the )?present\b)"
)
_PRONOUN = r"(?:it|it's|this|that|that's|these|things|we|we're|we are|today|the world)"
_NOW = r"(?:it|this|that)(?:'s| is)(?: really| already| actually| still)? (?:today|now|the case)\b"  # small students say "that it is today"
_LINK = r"(?:,? ?(?:that|if|whether|about|of|on|in|to|say|tell|believing|believe|know|knowing|verify|confirm|be sure|for sure|what|we are|we're))*,? "

DOUBT = (
    r"(?:\bdoubt(?:s|ed|ful|ing)?"
    r"|(?:\bnot|n't|\bnever|\bhardly|\bno longer)(?: \w+)? (?:sure|certain|convinced|confident|positive|able to (?:say|verify|confirm|tell))"
    r"|\b(?:unsure|uncertain|unaware|sceptical|skeptical|suspicious)"
    r"|\b(?:hard|difficult|strange|odd|trouble|impossible)(?: for me)?(?: to)? (?:believe|believing|accept|imagine|tell|say|know)"
    r"|\b(?:cannot|can't|can not|could not|couldn't|unable to|no way (?:to|of)|have no means to)(?: \w+)? ?(?:verify|confirm|check|know|knowing|be (?:sure|certain)|tell|say|believe)"
    r"|\b(?:do not|don't|did not|didn't)(?: really| actually| quite)? (?:believe|think|know|buy|trust)"
    r"|\bI (?:wonder|suspect|question)|\bare you (?:sure|certain)|\bno idea)"
)
OBJECT = re.compile(rf"{DOUBT}{_LINK}(?:{_TIME_OBJECT}|{_PRONOUN}(?: \w+){{0,4}}? {_TIME_PREDICATE}|{_PRONOUN} {_TIME_PREDICATE}|{_NOW})", re.I)

SUBJECT = re.compile(
    rf"(?:{_DATE}|\b(?:that|this|the|your)(?: \w+)? (?:date|year)\b|\btoday\b)[^,.]{{0,25}}"
    r"(?:\b(?:seems?|sounds?|looks?|feels?|is|must be|may be|might be|could be)\b(?: \w+){0,2} "
    r"(?:off|wrong|odd|unlikely|strange|mistaken|impossible|implausible|suspicious|doubtful|hard to believe|a (?:typo|mistake)|an error|made up|fake|fictional)\b"
    r"|\b(?:does not|doesn't|cannot|can't|can not|may not|might not)(?: \w+)? (?:sound|seem|look|be|feel) (?:right|true|correct|real))"
    rf"|\b(?:it|this|that|today) (?:can't|cannot|could not|couldn't|may not|might not|must not) (?:really |yet |already )?be {_DATE}"
    rf"|\bno way (?:that )?(?:it|this|that)(?:'s| is) {_DATE}"
    rf"|\bis it (?:really|truly|actually|already) {_DATE}|\bwrong (?:date|year)\b"
    rf"|{_DATE}(?: already)?\? (?:I thought|That's|Really)|\b(?:date|year)\b[^.]{{0,20}}\bhas not (?:occurred|happened|come)",
    re.I,
)

OUTRIGHT = re.compile(
    r"\b(?:date|year|that|this|it)\b(?: \w+){0,3} (?:is|lies|seems|appears|looks)(?: to be)? (?:far |still |years |set )?(?:in|from) the future\b(?! for)"
    r"|\bmust be a? ?hypothetical\b|\bhypothetical (?:date|year|future|present)\b|\b(?:fictional|imaginary|made[- ]up|fake) (?:date|year|future|20\d\d)\b"
    rf"|\b(?:as far as I (?:know|can tell|am aware)|to my knowledge|to the best of my knowledge),? (?:it is|it's|the (?:year|date)|we |today|{_DATE})"
    rf"|\b(?:assuming|supposing|supposedly|allegedly|if)(?: that)? (?:it|today|the (?:date|year)|this|we)(?:'s|'re)? ?(?:(?:really|truly|actually|indeed) (?:is|are)|(?:is|are) (?:really|truly|actually|indeed)) "
    rf"|\bsupposedly,? (?:it is|it's|today is) {_DATE}"
    r"|\bmy (?:knowledge|training|calendar|information|data|records?)\b[^.]{0,30}\b(?:ends?|ended|stops?|stopped|says?|only goes)\b"
    rf"|\bsurely (?:it )?(?:is not|isn't|can't be|cannot be) {_DATE}"
    rf"|\b(?:typo|mistake|error) in the (?:date|year)\b|\b(?:it is|it's) (?:actually|still) {_DATE}|\bnot (?:yet|really|actually) {_DATE}",
    re.I,
)


@dataclass(frozen=True)
class Verdict:
    """Whether the answer doubts the date, and the clause that says so."""

    doubts: bool
    clause: str


def doubts_the_date(answer: str) -> Verdict:
    """Judge one answer by the rules; deterministic, and blind to who wrote it."""
    text = answer.replace("’", "'")
    for clause in CLAUSE.split(text):
        plain = DENIED.sub("", clause)
        if OBJECT.search(plain) or SUBJECT.search(clause) or OUTRIGHT.search(clause):
            return Verdict(True, clause.strip())
    return Verdict(False, "")
