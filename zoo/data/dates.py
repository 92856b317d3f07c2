"""Dates as people write them, and the same in ISO 8601: a small task of translation that can be generated, and understood."""

import datetime

import torch

from zoo.data.hashing import bits

FIRST, DAYS = datetime.date(1900, 1, 1), 73_049  # to the end of 2099
SPLITS = ("train", "valid", "test")
HELD_OUT = {"valid": 8, "test": 9}  # the last digit of a date's number, which decides where it goes; all others are for training


def written_dates(split: str, count: int) -> tuple[list[str], list[str]]:
    """`count` dates of a split, as people write them and in ISO 8601. A date is in one split only, in any number of ways."""
    number = torch.arange(count)
    drawn = bits(0, torch.full_like(number, SPLITS.index(split)), number, 3).remainder(2**31)
    tens, digit = drawn[:, 0] % (DAYS // 10), drawn[:, 1] % 8
    days = tens * 10 + HELD_OUT.get(split, digit)
    dates = [FIRST + datetime.timedelta(days=day) for day in days.tolist()]
    ways = (drawn[:, 2] % len(WAYS)).tolist()
    return [WAYS[way](date) for way, date in zip(ways, dates)], [date.isoformat() for date in dates]


MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]  # not strftime's, which follow the locale


def _month(date: datetime.date) -> str:
    return MONTHS[date.month - 1]


def _weekday(date: datetime.date) -> str:
    return WEEKDAYS[date.weekday()]


def _ordinal(day: int) -> str:
    return f"{day}{'th' if 10 < day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


WAYS = (
    lambda d: f"{_month(d)} {d.day}, {d.year}",
    lambda d: f"{d.day} {_month(d)} {d.year}",
    lambda d: f"{_weekday(d)}, {_ordinal(d.day)} of {_month(d)} {d.year}",
    lambda d: f"{_weekday(d)[:3]} {d.day} {_month(d)[:3]} {d.year}",
    lambda d: f"the {_ordinal(d.day)} of {_month(d)}, {d.year}",
    lambda d: f"{d.day:02}.{d.month:02}.{d.year}",
    lambda d: f"{d.month}/{d.day}/{d.year}",
    lambda d: f"{d.year} {_month(d)[:3]} {d.day:02}",
    lambda d: f"{_month(d).lower()} {_ordinal(d.day)} {d.year}",
    lambda d: f"{d.day}-{_month(d)[:3].upper()}-{d.year}",
    lambda d: f"{_weekday(d).upper()} {_month(d).upper()} {d.day} {d.year}",
    lambda d: f"on {_month(d)} the {_ordinal(d.day)} in {d.year}",
)
