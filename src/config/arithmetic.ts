/**
 * The arithmetic that run records are written in: `8/3`, `2**16`, `512*1024*1024`.
 *
 * A recursive-descent parser over numbers, `+ - * / // % **` and parentheses, with Python's precedence and meaning
 * (`//` rounds towards minus infinity, `**` binds to the right and tighter than a sign before it). Nothing is ever
 * handed to an interpreter.
 */

const token = /\s*(?:(\d[\d_]*\.?[\d_]*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(\*\*|\/\/|[-+*/%()]))/y;

/**
 * The value of an arithmetic expression.
 *
 * @throws {SyntaxError} If the text is not arithmetic.
 * @throws {RangeError} If the result is not a finite number.
 *
 * @example
 * ```ts
 * import { evaluateArithmetic } from "./arithmetic.ts";
 * console.assert(evaluateArithmetic("512*1024*1024") === 536870912);
 * ```
 */
export function evaluateArithmetic(text: string): number {
  const tokens = tokenize(text);
  let next = 0;

  const take = (...operators: string[]): string | undefined =>
    operators.includes(tokens[next] as string) ? tokens[next++] as string : undefined;
  const refuse = (): never => {
    throw new SyntaxError(`Cannot read "${text}" as arithmetic: expected numbers and + - * / // % ** ( ), as in 8/3`);
  };

  // A sign may stand before any operand, also after `**`: 2**-1.
  function unary(): number {
    if (take("-")) return -unary();
    if (take("+")) return unary();
    return power();
  }
  function power(): number {
    const base = operand();
    return take("**") ? base ** unary() : base;
  }
  function operand(): number {
    if (take("(")) {
      const value = sum();
      if (!take(")")) refuse();
      return value;
    }
    const value = tokens[next++];
    return typeof value === "number" ? value : refuse();
  }
  function product(): number {
    let value = unary();
    for (let operator; (operator = take("*", "//", "/", "%"));) {
      const right = unary();
      if (operator === "*") value *= right;
      else if (operator === "/") value /= right;
      else if (operator === "//") value = Math.floor(value / right);
      else value -= right * Math.floor(value / right);
    }
    return value;
  }
  function sum(): number {
    let value = product();
    for (let operator; (operator = take("+", "-"));) value += operator === "+" ? product() : -product();
    return value;
  }

  const value = sum();
  if (next < tokens.length) refuse();
  if (!Number.isFinite(value)) throw new RangeError(`"${text}" has no finite value: it gives ${value}`);
  return value;
}

function tokenize(text: string): (number | string)[] {
  if (text.length > 200) throw new SyntaxError("Cannot read arithmetic longer than 200 characters");
  const tokens: (number | string)[] = [];
  const trimmed = text.trim();
  token.lastIndex = 0;
  while (token.lastIndex < trimmed.length) {
    const at = token.lastIndex;
    const match = token.exec(trimmed);
    if (!match) throw new SyntaxError(`Cannot read "${text}" as arithmetic: unexpected "${trimmed.slice(at)}"`);
    tokens.push(match[1] === undefined ? match[2] : Number(match[1].replaceAll("_", "")));
  }
  return tokens;
}
