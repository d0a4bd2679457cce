"""Arithmetic written out digit by digit, the form that arithmetic and variable tracking share."""


def write_columns(a: int, sign: str, b: int, width: int) -> str:
    """Return the columns of `a sign b` from the ones upwards, each as "x+y+carry=digit", then "c" and the new carry.

    47+38 at width 2 is "7+8+0=5c1,4+3+1=8c0". A difference has b, for borrow, instead of c. A product
    multiplies every digit of `a` by the single digit `b` and adds the carry: 47*2 is "7*2+0=4c1,4*2+1=9c0".

    Raises:
        ValueError: the result is outside 0 to 10**width - 1, or the sign is unknown.
    """
    if not 0 <= result_of(a, sign, b) < 10**width:
        raise ValueError(f"write_columns: got {a}{sign}{b}, expected a result of 0 to {10**width - 1}")
    columns, carry = [], 0
    for place in range(width):
        x, y = a // 10**place % 10, b if sign == "*" else b // 10**place % 10
        total = x + y + carry if sign == "+" else x - y - carry if sign == "-" else x * y + carry
        then = "-" if sign == "-" else "+"
        mark, out = ("b", int(total < 0)) if sign == "-" else ("c", total // 10)
        columns.append(f"{x}{sign}{y}{then}{carry}={total % 10}{mark}{out}")
        carry = out
    return ",".join(columns)


def result_of(a: int, sign: str, b: int) -> int:
    """Return `a sign b` for the signs +, - and *.

    Raises:
        ValueError: the sign is unknown.
    """
    match sign:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
    raise ValueError(f"result_of: got the sign {sign!r}, expected one of + - *")
