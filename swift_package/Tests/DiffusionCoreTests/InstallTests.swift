import DiffusionCore
import Foundation
import TestBundle
import Testing

/// Bundles that appear whole where an app opens them, or not at all.
@Suite struct InstallTests {
  private func temporary() -> URL {
    FileManager.default.temporaryDirectory.appending(path: "install-\(UUID().uuidString)")
  }

  @Test func aBundleIsCopiedAndChecked() async throws {
    let small = try SmallBundle(format: .coreai)
    let folder = temporary()
    defer { try? FileManager.default.removeItem(at: folder) }
    let place = folder.appending(path: "a.bundle")
    try await BundleFolder.install(from: small.url, at: place)
    let copy = try BundleFolder(url: place, checkingHashes: true)
    #expect(copy.manifest.digest == small.bundle.manifest.digest)
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path) == ["a.bundle"])
    let error = await #expect(throws: MatryoshkaError.self) {
      try await BundleFolder.install(from: small.url, at: place)
    }
    #expect(error?.errorDescription?.hasSuffix("already exists; choose another place.") == true)
  }

  /// A file of the right size and other bytes, which opening a bundle does not see.
  @Test func aDamagedOneLeavesNothing() async throws {
    let small = try SmallBundle(format: .coreai)
    let folder = temporary()
    defer { try? FileManager.default.removeItem(at: folder) }
    let program = small.url.appending(path: "core_4.aimodel/main.mlirb")
    try Data("core_5".utf8).write(to: program)
    #expect(try BundleFolder(url: small.url).sides == [8, 4])
    let error = await #expect(throws: MatryoshkaError.self) {
      try await BundleFolder.install(from: small.url, at: folder.appending(path: "a.bundle"))
    }
    #expect(error?.code == "damaged_bundle")
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path).isEmpty)
  }

  @Test func oneThatIsCancelledLeavesNothing() async throws {
    let small = try SmallBundle(format: .coreai)
    let (folder, source) = (temporary(), small.url)
    defer { try? FileManager.default.removeItem(at: folder) }
    let work = Task {
      withUnsafeCurrentTask { $0?.cancel() }
      try await BundleFolder.install(from: source, at: folder.appending(path: "a.bundle"))
    }
    await #expect(throws: CancellationError.self) { try await work.value }
    #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path).isEmpty)
  }
}
