"""The largest amount of a charge in each currency."""

from contract.currencies import EXPONENTS

# The largest amount of a charge, in minor units: eight digits, Stripe's limit in nearly all currencies; and twelve, Stripe's
# largest limit (rupiah), where eight digits would be less than about 100,000 US dollars. At the rates of 2026 these are the
# currencies with 1,000 and more minor units to the dollar. The cap catches slips: COMMAND_MAX_AMOUNTS sets others.
MOST_DIGITS = 12
_TWELVE_DIGITS = """
    AFN ALL AMD AOA ARS BDT BIF BWP CDF COP CRC CUP CVE CZK DOP DZD EGP ERN ETB GMD GNF GYD HNL HTG HUF IDR INR IQD IRR JMD
    KES KGS KHR KPW KRW KZT LAK LBP LKR LRD LSL LYD MDL MGA MKD MMK MNT MRU MUR MVR MWK MXN MZN NAD NGN NIO NPR PHP PKR PYG
    RSD RUB RWF SCR SDG SLE SOS SRD SSP STN SYP SZL THB TND TRY TWD TZS UAH UGX UYU UZS VES VND YER ZAR ZMW ZWG
"""
MAX_MINOR_UNITS = dict.fromkeys(EXPONENTS, 10**8 - 1) | dict.fromkeys(_TWELVE_DIGITS.split(), 10**MOST_DIGITS - 1)
