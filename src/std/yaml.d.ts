/** Parses one YAML 1.2 document. Throws `SyntaxError` with line and column on malformed text. */
export function parse(text: string): unknown;
export interface StringifyOptions {
  /** Indentation width in spaces. @default {2} */
  indent?: number;
  /** Wrap long lines at this width; -1 never wraps. @default {80} */
  lineWidth?: number;
  skipInvalid?: boolean;
}
export function stringify(value: unknown, options?: StringifyOptions): string;
