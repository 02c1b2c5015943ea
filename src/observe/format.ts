/** Numbers as people read them, short and of steady width. */

/** `3.2145`, `123.4`, `1.23e+7`, `NaN`. */
export function formatLoss(value: number): string {
  const size = Math.abs(value);
  return !Number.isFinite(value)
    ? String(value)
    : size < 100
    ? value.toFixed(4)
    : size < 1e5
    ? value.toFixed(1)
    : value.toExponential(2);
}

/** `987`, `12.3k`, `4.56M`: three digits that count. */
export function formatCount(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  let rest = value;
  for (const unit of ["", "k", "M", "G", "T"]) {
    if (rest < 999.5) return `${unit === "" ? Math.round(rest) : threeDigits(rest)}${unit}`;
    rest /= 1000;
  }
  return `${value.toExponential(2)}`;
}

/** `1 row`, `1,888 rows`. */
export const countOf = (count: number, thing: string): string =>
  `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

/** `512 MiB`, `1.50 GiB`. */
export function formatBytes(bytes: number): string {
  let rest = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (rest < 1023.5) return `${unit === "B" || unit === "KiB" ? Math.round(rest) : threeDigits(rest)} ${unit}`;
    rest /= 1024;
  }
  return `${threeDigits(rest)} TiB`;
}

/** `45s`, `1m 20s`, `2h 05m`, `3d 04h`. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const whole = Math.max(0, Math.round(seconds));
  const two = (value: number) => String(value).padStart(2, "0");
  const [minutes, hours, days] = [60, 3600, 86400].map((unit) => Math.floor(whole / unit));
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${minutes}m ${two(whole % 60)}s`;
  if (whole < 86400) return `${hours}h ${two(minutes % 60)}m`;
  return `${days}d ${two(hours % 24)}h`;
}

function threeDigits(value: number): string {
  return value < 9.995 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : value.toFixed(0);
}
