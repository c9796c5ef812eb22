#if canImport(CoreGraphics)
  import CoreGraphics
  import DiffusionCore
  import Foundation

  extension Picture {
    /// The picture as a new `CGImage`; nil if the system cannot make one. Not run on a Mac.
    public var cgImage: CGImage? {
      guard let provider = CGDataProvider(data: Data(rgb) as CFData),
        let space = CGColorSpace(name: CGColorSpace.sRGB)
      else { return nil }
      return CGImage(
        width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 24, bytesPerRow: 3 * width,
        space: space, bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.none.rawValue),
        provider: provider, decode: nil, shouldInterpolate: false, intent: .defaultIntent)
    }
  }
#endif
