"""The currencies of charges and their decimals: one table, by exponent.

Source: ISO 4217, list one ("current currency and funds") of the maintenance agency SIX as published on 2026-01-01, without
the codes that are no means of payment: the funds codes (BOV CHE CHW CLF COU MXV USN UYI UYW), units of account (XAD XBA XBB
XBC XBD XDR XSU XUA), metals (XAG XAU XPD XPT), and XTS (tests) and XXX (no currency). Withdrawn codes, such as HRK and BGN,
are not in list one. The exponent is ISO's. A bank whose interface uses another one (one bank counts ISK and UGX in
hundredths) has an adapter that converts.
"""

_CODES_BY_EXPONENT = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    2: """
        AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP
        CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES
        KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK
        NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB
        TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG
    """,
    3: "BHD IQD JOD KWD LYD OMR TND",
}

# Decimals of each currency: 1250 minor units are 12.50 with exponent 2, 1250 with 0, and 1.250 with 3.
EXPONENTS = {code: exponent for exponent, codes in _CODES_BY_EXPONENT.items() for code in codes.split()}
