import { DatamonError } from "../../cas/index.ts";

const MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/**
 * A moment of the machine's time zone as earlier versions wrote it: `2006-Jan-02`, `0601021504`
 * (year, month, day, hour, minute) or `060102150405` (and second). Years of two digits are those from
 * 1969 to 2068, as in POSIX. Throws "usage" for anything else.
 */
export function parseMoment(text: string): Date {
  const day = /^(\d{4})-([A-Za-z]{3})-(\d{2})$/.exec(text);
  if (day !== null) {
    const month = MONTHS.indexOf((day[2] as string).toLowerCase());
    return checked(text, [Number(day[1]), month, Number(day[3]), 0, 0, 0]);
  }
  const digits = /^(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)?$/.exec(text);
  if (digits === null) throw senseless(text);
  const [year, month, date, hour, minute, second] = digits.slice(1).map((part) => Number(part ?? 0)) as Parts;
  return checked(text, [year + (year < 69 ? 2000 : 1900), month - 1, date, hour, minute, second]);
}

/** `2006-jan-02`, of the machine's time zone. */
export function dayName(date: Date): string {
  const two = (number: number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${MONTHS[date.getMonth()]}-${two(date.getDate())}`;
}

type Parts = [number, number, number, number, number, number];

/** `Date` takes the 31st of February for a day in March. */
function checked(text: string, [year, month, day, hour, minute, second]: Parts): Date {
  const date = new Date(year, month, day, hour, minute, second);
  const sound =
    date.getFullYear() === year && date.getMonth() === month && date.getDate() === day && hour < 24 && minute < 60;
  if (!sound || second > 59) throw senseless(text);
  return date;
}

function senseless(text: string): DatamonError {
  return new DatamonError("usage", `${JSON.stringify(text)} is not a time`, {
    hint: "Write it like 2006-Jan-02, 0601021504 or 060102150405 (year, month, day, hour, minute, second).",
  });
}
