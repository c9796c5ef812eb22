#if canImport(CoreML) || COREML_SHIM
  import DiffusionCore
  import Foundation

  #if COREML_SHIM
    import CoreMLShim
  #elseif canImport(CoreML)
    import CoreML
  #endif

  /// A bundle's packages, compiled in advance on a Mac: a folder with one .mlmodelc per package and the
  /// digest of the bundle. Pass it to ``CompiledModels`` along with the bundle. Not run on a Mac.
  public enum CompiledBundle {
    private static let stamp = "digest"

    /// Compiles all packages into a new folder. The folder appears complete or not at all.
    ///
    /// - Parameters:
    ///   - compile: compiles one package; `MLModel.compileModel(at:)` by default.
    ///   - progress: receives the number of packages done and the total.
    public static func make(
      of bundle: BundleFolder, at place: URL,
      compile: CompiledModels.Compile = { try await MLModel.compileModel(at: $0) },
      progress: @Sendable (Int, Int) -> Void = { _, _ in }
    ) async throws {
      try bundle.check(isFor: .coreml)
      let files = FileManager.default
      guard !files.fileExists(atPath: place.path) else {
        throw MatryoshkaError.fileSystem(path: place.path, reason: "already exists; choose another place")
      }
      let partial = place.deletingLastPathComponent()
        .appending(path: ".\(place.lastPathComponent).\(UUID().uuidString).partial")
      defer { try? files.removeItem(at: partial) }
      do {
        try files.createDirectory(at: partial, withIntermediateDirectories: true)
        try Data(bundle.manifest.digest.utf8).write(to: partial.appending(path: stamp))
        let packages = bundle.manifest.packages.onePerFile
        for (index, package) in packages.enumerated() {
          progress(index, packages.count)
          try Task.checkCancellation()
          let made = try await compiled(package, bundle, compile)
          defer { try? files.removeItem(at: made) }
          try files.moveItem(at: made, to: partial.appending(path: name(of: package)))
        }
        try files.moveItem(at: partial, to: place)
        progress(packages.count, packages.count)
      } catch let error as CocoaError {
        throw MatryoshkaError.fileSystem(path: place.path, reason: error.cause)
      }
    }

    static func name(of package: Manifest.Package) -> String {
      "\(package.path.dropLast(".mlpackage".count)).mlmodelc"
    }

    static func url(
      of package: Manifest.Package, of bundle: BundleFolder, in folder: URL
    ) throws -> URL {
      let place = folder.appending(path: name(of: package))
      let digest = try? Data(contentsOf: folder.appending(path: stamp))
      guard digest == Data(bundle.manifest.digest.utf8),
        FileManager.default.fileExists(atPath: place.path)
      else {
        throw MatryoshkaError.damagedBundle(
          file: folder.path, reason: "was not compiled from this bundle")
      }
      return place
    }

    private static func compiled(
      _ package: Manifest.Package, _ bundle: BundleFolder, _ compile: CompiledModels.Compile
    ) async throws -> URL {
      do {
        return try await compile(bundle.url.appending(path: package.path))
      } catch {
        throw MatryoshkaError.packageFailed(
          package: package.name, reason: "cannot be compiled (\(error.cause))")
      }
    }
  }
#endif
