import DiffusionCore
import Testing

@Suite struct SHA256Tests {
  /// Examples of FIPS 180-4.
  @Test(arguments: [
    ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
      "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
  ])
  func publishedExamples(text: String, expected: String) {
    #expect(SHA256.hex(of: Array(text.utf8)) == expected)
  }

  @Test func piecesGiveTheDigestOfTheWhole() {
    let bytes = (0..<1000).map { UInt8(truncatingIfNeeded: $0 * 7) }
    for cut in [0, 1, 63, 64, 65, 500, 1000] {
      var hash = SHA256()
      bytes[..<cut].withUnsafeBytes { hash.update($0) }
      bytes[cut...].withUnsafeBytes { hash.update($0) }
      #expect(hash.finish() == SHA256.digest(of: bytes))
    }
  }

  /// Where CryptoKit hashes, ours must say the same.
  @Test func oursIsThatOfTheSystem() {
    var ours = PortableSHA256()
    let bytes = (0..<100_000).map { UInt8(truncatingIfNeeded: $0 * 31) }
    bytes.withUnsafeBytes { ours.update($0) }
    #expect(ours.finish() == SHA256.digest(of: bytes))
  }
}
