import DiffusionCore

/// Converts pictures to and from raw RGB bytes.
enum Pictures {
  static func write(raw: String, width: Int, out: String) throws {
    let rgb = try read(raw)
    let picture = try Picture(width: width, height: rgb.count / 3 / max(width, 1), rgb: rgb)
    try mdm_dump.write(picture.png(text: ("mdm", "{}")), to: out)
  }

  static func read(_ png: String, out: String) throws {
    try mdm_dump.write(Picture(png: read(png)).rgb, to: out)
  }

  private static func read(_ path: String) throws -> [UInt8] { try mdm_dump.read(path) }
}
