import Foundation

/// A Git LFS pointer: the small text that a clone without LFS has in the place of a large file.
enum GitPointer {
  static let reason = "is a Git LFS pointer, not the file itself; run git lfs pull"
  private static let start = Array("version https://git-lfs".utf8)

  /// Whether these first bytes of a file are a pointer's.
  static func begins(_ bytes: some Sequence<UInt8>) -> Bool { bytes.starts(with: start) }

  /// Whether a file is one; false if it cannot be read.
  static func isFile(_ url: URL) -> Bool {
    guard let file = try? FileHandle(forReadingFrom: url) else { return false }
    defer { try? file.close() }
    return begins((try? file.read(upToCount: start.count)) ?? Data())
  }
}
