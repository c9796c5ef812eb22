import Foundation

#if canImport(CryptoKit)
  import CryptoKit
#endif

/// SHA-256 (FIPS 180-4): CryptoKit's, which uses the processor's own instructions in every kind of
/// build, or ours where there is no CryptoKit.
package struct SHA256 {
  #if canImport(CryptoKit)
    private var hash = CryptoKit.SHA256()
  #else
    private var hash = PortableSHA256()
  #endif

  /// Bytes that are read and hashed at a time.
  package static let piece = 1 << 20

  package init() {}

  /// Adds bytes.
  package mutating func update(_ bytes: UnsafeRawBufferPointer) {
    #if canImport(CryptoKit)
      hash.update(bufferPointer: bytes)
    #else
      hash.update(bytes)
    #endif
  }

  /// The digest of everything added so far.
  package consuming func finish() -> [UInt8] {
    #if canImport(CryptoKit)
      Array(hash.finalize())
    #else
      hash.finish()
    #endif
  }

  /// The digest of some bytes, in hexadecimal.
  package static func hex(of bytes: [UInt8]) -> String { hex(digest(of: bytes)) }

  package static func digest(of bytes: [UInt8]) -> [UInt8] {
    var hash = SHA256()
    bytes.withUnsafeBytes { hash.update($0) }
    return hash.finish()
  }

  /// The digest of a file, in hexadecimal; the file is read in pieces.
  ///
  /// Throws ``MatryoshkaError/fileSystem(path:reason:)``, and what `between` throws.
  ///
  /// - Parameter between: called after every piece with the number of its bytes.
  package static func hex(ofFile url: URL, between: (Int) throws -> Void = { _ in }) throws -> String {
    let file: FileHandle
    do {
      file = try FileHandle(forReadingFrom: url)
    } catch {
      throw unreadable(url, error)
    }
    defer { try? file.close() }
    var hash = SHA256()
    while let bytes = try next(file, url) {
      bytes.withUnsafeBytes { hash.update($0) }
      try between(bytes.count)
    }
    return hex(hash.finish())
  }

  private static func next(_ file: FileHandle, _ url: URL) throws -> Data? {
    do {
      guard let bytes = try file.read(upToCount: piece), !bytes.isEmpty else { return nil }
      return bytes
    } catch {
      throw unreadable(url, error)
    }
  }

  private static func unreadable(_ url: URL, _ error: any Error) -> MatryoshkaError {
    .fileSystem(path: url.path, reason: "cannot be read (\(error.cause))")
  }

  private static func hex(_ digest: [UInt8]) -> String {
    let digits = Array("0123456789abcdef".utf8)
    return String(decoding: digest.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
  }
}
